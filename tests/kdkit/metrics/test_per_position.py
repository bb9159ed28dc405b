"""Metrics of predictions with a label for each pixel or token."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import nn

from kdkit.errors import DataError
from kdkit.metrics import (
    F1,
    NDCG,
    Accuracy,
    BestF1,
    BootstrapInterval,
    CrossEntropy,
    FixedThresholds,
    MeanIoU,
    Perplexity,
    Predictions,
    TopKAccuracy,
    YoudenJ,
    classification,
)
from tests.helpers.positions import CLASSES


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_metrics_of_positions_do_not_depend_on_the_blocks_they_are_counted_in(task, monkeypatch):
    random = np.random.default_rng(0)
    if task == "multiclass":
        labels, outputs = random.integers(-1, 3, (7, 5, 6)), random.integers(0, 3, (7, 5, 6))
    else:
        labels, outputs = random.integers(-1, 2, (7, 3, 5, 6)), random.random((7, 3, 5, 6)) > 0.5
    predictions = Predictions(labels=labels.astype(np.int8), outputs=outputs, classes=CLASSES, per_position=True)
    expected = MeanIoU().compute(predictions)
    monkeypatch.setattr(classification, "_BLOCK", 100)  # one map of a class has 30 positions
    assert MeanIoU().compute(predictions) == expected
    if task == "multilabel":
        has_label = labels >= 0
        scores = [
            jaccard_score(labels[:, index][has_label[:, index]], outputs[:, index][has_label[:, index]])
            for index in range(3)
        ]
        assert expected.value == pytest.approx(np.mean(scores))


def test_an_interval_resamples_images_and_not_pixels():
    labels = np.zeros((6, 4, 4), np.int8)
    outputs = labels.copy()
    outputs[:3] = 1  # three images are right at all pixels, and three at none
    test = Predictions(labels=labels, outputs=outputs, classes=("a", "b"), per_position=True)
    result = BootstrapInterval(Accuracy(), resamples=500).compute(test)
    assert result.value == 0.5
    assert result.interval[0] < 0.2  # of 96 independent pixels it would be above 0.4
    assert result.interval[1] > 0.8


def test_the_loss_of_masks_by_class_is_that_of_their_known_labels():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 2, 4, 4, generator=generator)
    labels = torch.randint(-1, 2, (3, 2, 4, 4), generator=generator)
    test = Predictions(
        labels=labels.numpy(),
        outputs=(outputs >= 0).numpy(),
        classes=("a", "b"),
        per_position=True,
        reduced={"cross_entropy": CrossEntropy().reduce_positions(outputs, labels).numpy()},
    )
    result = CrossEntropy().compute(test)
    losses = nn.functional.binary_cross_entropy_with_logits(outputs, labels.float(), reduction="none")
    assert result.value == pytest.approx(losses[labels >= 0].mean().item(), rel=1e-6)
    first = losses[:, 0][labels[:, 0] >= 0].mean().item()
    assert result.by_class["a"] == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("metric", [CrossEntropy(), Perplexity(), TopKAccuracy(2), NDCG()])
def test_a_metric_that_needs_logits_refuses_predictions_of_classes_alone(metric):
    labels = np.zeros((2, 3), np.int8)
    stored = Predictions(labels=labels, outputs=labels, classes=CLASSES, per_position=True)
    with pytest.raises(DataError, match=r"needs the logits of positions, .*Recipe\(metrics=...\)"):
        metric.compute(stored)


@pytest.mark.parametrize(
    ("rule", "is_refused"),
    [(YoudenJ(), True), (FixedThresholds(1.0), True), (FixedThresholds(), False), (BestF1(), False)],
)
def test_thresholds_of_logits_that_are_not_kept_are_refused(rule, is_refused):
    labels = np.arange(24).reshape(2, 3, 4) % 2
    kept = Predictions(labels=labels, outputs=labels == 1, classes=("a", "b", "c"), per_position=True)
    with pytest.raises(DataError, match="only decisions at logit 0 are kept") if is_refused else nullcontext():
        assert F1(thresholds_by=rule).fit(kept).compute(kept).value == 1
