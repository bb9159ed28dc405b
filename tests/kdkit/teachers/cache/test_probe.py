"""A teacher is tried on a tiny batch before anything it says is kept."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit import Batch, Net, Tap
from kdkit.errors import CacheError
from kdkit.teachers import Frozen
from kdkit.teachers.cache import probe
from tests.helpers.tiny import Mlp


def batch(samples=4, **changes):
    torch.manual_seed(1)
    given = {"ids": torch.arange(samples), "draw": 0, **changes}
    return Batch(torch.randn(samples, 4), torch.arange(samples) % 3, **given)


def trial(module, given=None, taps=()):
    frozen = Frozen(Net("teacher", module, version="1"), taps)
    try:
        return probe(frozen, given or batch(), autocast=False)
    finally:
        frozen.close()


class Unlike(nn.Module):
    """Says something else each time."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, inputs):
        self.asked += 1
        return inputs * self.asked


class Packed(nn.Module):
    """Takes batches of four and no others."""

    def forward(self, inputs):
        return inputs.view(4, 2, 2).flatten(1)


REFUSED = {
    "batch norm over the batch itself": (nn.BatchNorm1d(4, track_running_stats=False), "others in its batch"),
    "the place in the batch": (lambda x: x + torch.arange(len(x))[:, None], "others in its batch"),
    "another answer each time": (Unlike(), "differently each time"),
    "dropout that never ends": (lambda x: F.dropout(x, 0.5), "draws random numbers"),
    "random numbers that do not matter": (lambda x: x + 0 * torch.rand(1), "draws random numbers"),
    "batches of one size": (Packed(), "cannot answer a part of a batch"),
    "no row for each sample": (lambda x: x.sum(0), "no row for each sample"),
    "a scalar": (lambda x: x.sum(), "no row for each sample"),
}


@pytest.mark.parametrize(("module", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_teacher_that_cannot_be_asked_once_is_refused(module, reason):
    with pytest.raises(CacheError, match=reason):
        trial(module)


def test_a_teacher_in_eval_mode_is_not_refused():
    net = nn.Sequential(Mlp(), nn.Dropout(0.5))
    assert trial(net).rounding < 1e-6
    assert trial(net, batch(1)).rounding == 0


def test_a_tap_that_hands_out_no_rows_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.middle = nn.Identity()

        def forward(self, inputs):
            return inputs + self.middle(inputs.mean(0))

    module = Odd()
    with pytest.raises(CacheError, match="no row for each sample"):
        trial(module, taps=(Tap(module.middle),))


@pytest.mark.parametrize("changes", [{"ids": None}, {"draw": None}])
def test_batches_without_ids_or_draws_are_refused(changes):
    with pytest.raises(CacheError, match="no ids, or do not say which draw"):
        trial(Mlp(), batch(**changes))


def test_a_trial_leaves_the_random_states_as_they_were():
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    given = batch()
    before = torch.get_rng_state()
    with pytest.raises(CacheError):
        trial(lambda x: x + torch.rand(1), given)
    assert torch.equal(before, torch.get_rng_state())
    trial(Mlp().eval(), given)
