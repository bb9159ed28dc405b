"""A teacher is run on a tiny batch before any of its outputs are cached."""

import random
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit import Batch, Net, Tap
from kdkit.errors import CacheError
from kdkit.teachers import Frozen
from kdkit.teachers.cache import probe
from tests.helpers.tiny import Mlp


def make_batch(samples=4, **changes):
    torch.manual_seed(1)
    options = {"ids": torch.arange(samples), "draw": 0, **changes}
    return Batch(torch.randn(samples, 4), torch.arange(samples) % 3, **options)


def run_probe(module, batch=None, taps=(), **options):
    frozen = Frozen(Net("teacher", module, version="1"), taps)
    try:
        return probe(frozen, batch or make_batch(), autocast=False, **options)
    finally:
        frozen.close()


class Counting(nn.Module):
    """Returns other outputs at each call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return inputs * self.calls


class BatchOfFour(nn.Module):
    """Takes batches of four samples only."""

    def forward(self, inputs):
        return inputs.view(4, 2, 2).flatten(1)


class Sum(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return x.sum(self.dim)


class ShapeByBatch(nn.Module):
    """Returns as many columns as the batch has samples."""

    def forward(self, inputs):
        return inputs[:, :1].expand(-1, len(inputs) * 2)


REFUSED = {
    "batch norm over the batch itself": (
        nn.BatchNorm1d(4, track_running_stats=False),
        "its output for a sample depends on the other samples in the batch",
    ),
    "the place in the batch": (
        lambda x: x + torch.arange(len(x))[:, None],
        "its output for a sample depends on the other samples in the batch",
    ),
    "outputs that change": (Counting(), "its outputs for the same batch differ from call to call"),
    "dropout that is always on": (lambda x: F.dropout(x, 0.5), "draws random numbers"),
    "random numbers that do not matter": (lambda x: x + 0 * torch.rand(1), "draws random numbers"),
    "batches of one size": (BatchOfFour(), "it fails on part of a batch"),
    "no row for each sample": (Sum(0), "do not have one row per sample"),
    "a scalar": (Sum(None), "do not have one row per sample"),
    "a shape that changes": (
        ShapeByBatch(),
        "its output for a sample depends on the other samples in the batch",
    ),
}


@pytest.mark.parametrize(("module", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_teacher_whose_outputs_cannot_be_cached_by_sample_is_refused(module, reason):
    with pytest.raises(CacheError, match=reason):
        run_probe(module)


def test_halves_of_different_shapes_are_refused():
    with pytest.raises(CacheError, match="the shape of its outputs depends on the other samples in the batch"):
        run_probe(ShapeByBatch(), make_batch(3))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda x: x, "the shape of its outputs depends on the padding of the batch; pad all samples to one length"),
        (lambda x: x.mean(1), "its output for a sample depends on the padding of the batch; pad"),
        (lambda x: x.sum(1), None),
        (lambda x: x.reshape(len(x), 4), r"it fails on other samples \(.*shape"),
    ],
)
def test_a_teacher_whose_outputs_depend_on_the_padding_is_refused(module, reason):
    signals = [torch.ones(length, 2) for length in (2, 3, 5, 4)]
    whole = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
    batch = replace(make_batch(), inputs=whole)

    parts = [batch.rows(torch.tensor(rows)) for rows in ([0, 1], [2, 3])]
    parts[0] = replace(parts[0], inputs=parts[0].inputs[:, :3])
    with nullcontext() if reason is None else pytest.raises(CacheError, match=reason):
        run_probe(module, make_batch(), padded=[batch, *parts])


def test_a_teacher_in_eval_mode_is_not_refused():
    module = nn.Sequential(Mlp(), nn.Dropout(0.5))
    assert run_probe(module).rounding < 1e-6
    assert run_probe(module, make_batch(1)).rounding == 0


def test_a_tap_whose_feature_has_no_rows_is_refused():
    class AddsMean(nn.Module):
        def __init__(self):
            super().__init__()
            self.middle = nn.Identity()

        def forward(self, inputs):
            return inputs + self.middle(inputs.mean(0))

    module = AddsMean()
    with pytest.raises(CacheError, match="do not have one row per sample"):
        run_probe(module, taps=(Tap(module.middle),))


@pytest.mark.parametrize("changes", [{"ids": None}, {"draw": None}])
def test_batches_without_ids_or_draws_are_refused(changes):
    with pytest.raises(CacheError, match="its batches have no ids or no draw number"):
        run_probe(Mlp(), make_batch(**changes))


def test_a_probe_leaves_the_random_states_as_they_were():
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    batch = make_batch()
    before = torch.get_rng_state()
    with pytest.raises(CacheError):
        run_probe(lambda x: x + torch.rand(1), batch)
    assert torch.equal(before, torch.get_rng_state())
    run_probe(Mlp().eval(), batch)
