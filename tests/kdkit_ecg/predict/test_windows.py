"""Tests of the windows of records: a short one is padded as in training, a long one is covered."""

import itertools

import numpy as np
import pytest
import torch

from kdkit_ecg.datasets.signal_split import SignalSplit
from kdkit_ecg.predict.predictor import cut, starts_of


@pytest.mark.parametrize("time", [1, 6, 7, 10, 11, 12, 19, 20])
def test_the_middle_window_is_that_of_the_evaluation(time):
    signal = np.random.default_rng(0).normal(size=(2, time)).astype(np.float32)
    split = SignalSplit(
        signals=[signal], person=torch.zeros(1, 5), labels=torch.zeros(1, 1), ids=torch.zeros(1).long(), length=10,
        rate=100, window="centre",
    )  # fmt: skip
    expected = split.batch(torch.tensor([0]), 0).inputs.signal.numpy()
    assert np.array_equal(cut(signal, starts_of(time, 10, "centre"), 10), expected)


@pytest.mark.parametrize("time", [10, 11, 20, 21, 25, 101, 1000])
def test_windows_cover_every_sample_and_are_as_few_as_possible(time):
    starts = starts_of(time, 10, "mean")
    assert (starts[0], starts[-1]) == (0, time - 10)
    assert len(starts) == -(-time // 10)
    assert all(0 < second - first <= 10 for first, second in itertools.pairwise(starts))
