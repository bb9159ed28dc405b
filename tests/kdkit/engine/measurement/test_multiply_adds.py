"""The multiply-adds of a network are counted by torch, also in layers that torch fuses."""

import pytest
import torch
from torch import nn
from torch.backends import cudnn, mha, mkldnn

from kdkit import Net
from kdkit.data.batch import Batch
from kdkit.engine.measurement.multiply_adds import multiply_adds
from kdkit.utils.devices import uses_tf32
from tests.helpers.tiny import same_state, state_of


def batch(*shape):
    return Batch(inputs=torch.randn(4, *shape), labels=torch.zeros(4, dtype=torch.int64))


class Last(nn.Module):
    """The outputs of a recurrent layer at the last position."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        return self.layer(inputs)[0][:, -1]


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(6, 3), (6,), 6 * 3),
        (nn.Conv1d(2, 4, 3, padding=1), (2, 10), 10 * 2 * 4 * 3),
        # four gates, each from inputs and hidden units
        (Last(nn.LSTM(8, 16, batch_first=True)), (5, 8), 5 * 4 * 16 * (8 + 16)),
        (Last(nn.GRU(8, 16, batch_first=True)), (5, 8), 5 * 3 * 16 * (8 + 16)),
        # projections of queries, keys, values and outputs; attention twice over 5 x 5 pairs; both linear layers
        (
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            (5, 16),
            5 * 16 * 16 * 4 + 2 * 5 * 5 * 16 + 2 * 5 * 16 * 32,
        ),
    ],
)
def test_multiply_adds_are_those_of_one_sample(module, shape, expected):
    assert multiply_adds(Net("net", module), batch(*shape)) == expected


def test_a_network_that_takes_no_single_sample_is_counted_too():
    class Squeezing(nn.Linear):
        def forward(self, inputs):
            rows, _ = inputs.squeeze().shape  # fails for a single sample
            return super().forward(inputs).reshape(rows, -1)

    assert multiply_adds(Net("net", Squeezing(6, 3)), batch(6)) == 18


def test_a_plain_callable_cannot_be_counted():
    assert multiply_adds(Net("service", lambda inputs: inputs, version="1"), batch(6)) is None
    assert multiply_adds(Net("net", nn.Identity()), batch(6)) is None


def test_counting_changes_neither_the_network_nor_the_settings_of_torch():
    module = Last(nn.LSTM(8, 16, batch_first=True, num_layers=2, dropout=0.5)).train()
    before = state_of(module)
    settings = (mkldnn.enabled, cudnn.enabled, mha.get_fastpath_enabled(), uses_tf32())
    inputs = batch(5, 8)
    random = torch.get_rng_state()
    multiply_adds(Net("net", module), inputs)
    assert same_state(state_of(module), before)
    assert module.training
    assert torch.equal(torch.get_rng_state(), random)
    assert (mkldnn.enabled, cudnn.enabled, mha.get_fastpath_enabled(), uses_tf32()) == settings
