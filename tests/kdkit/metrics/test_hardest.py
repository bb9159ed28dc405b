"""The samples that a network got most wrong are those with the largest cross-entropy."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.nn import functional

from kdkit import Predictions
from kdkit.metrics.likelihood import hardest_samples


def predictions(labels, outputs, **options):
    return Predictions(labels=labels, outputs=outputs, classes=("a", "b", "c"), **options)


def test_classes_are_ordered_by_the_cross_entropy_of_torch():
    random = np.random.default_rng(0)
    labels, outputs = random.integers(0, 3, 20), 100 * random.standard_normal((20, 3))
    losses = functional.cross_entropy(torch.tensor(outputs), torch.tensor(labels), reduction="none")
    assert hardest_samples(predictions(labels, outputs), 5).tolist() == losses.argsort(descending=True)[:5].tolist()


def test_labels_by_class_are_ordered_by_the_mean_over_known_labels():
    labels = np.array([[1.0, 0, 0], [1, np.nan, np.nan], [0, 0, np.nan], [np.nan] * 3])
    outputs = np.array([[-9.0, -9, -9], [-4, 50, 50], [-5, -5, 900], [9, 9, 9]])
    # 9 / 3, 4 / 1, about 0, and none
    assert hardest_samples(predictions(labels, outputs), 9).tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize("labels", ["one class", "several classes"])
def test_the_losses_of_many_outputs_take_little_memory_besides_them(labels):
    tracemalloc.start()
    try:
        outputs = np.zeros((6000, 1000), np.float32)
        truth = np.zeros(6000, np.int64) if labels == "one class" else np.zeros((6000, 1000), np.int8)
        before = tracemalloc.get_traced_memory()[0]
        split = Predictions(labels=truth, outputs=outputs, classes=tuple(map(str, range(1000))))
        hardest_samples(split, 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < 3 * outputs.nbytes


@pytest.mark.parametrize(
    ("labels", "outputs", "options"),
    [
        (np.ones((2, 3)) / 2, np.ones((2, 3)), {}),
        (np.ones((2, 4), np.int64), np.ones((2, 4), np.int64), {"per_position": True}),
    ],
    ids=["numbers", "positions"],
)
def test_numbers_and_positions_have_no_order(labels, outputs, options):
    assert not len(hardest_samples(predictions(labels, outputs, **options), 2))
