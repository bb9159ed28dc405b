"""The cross-entropy of labels and perplexity, against scikit-learn and torch."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn

from kdkit import DataError, Predictions
from kdkit.metrics import (
    BootstrapInterval,
    CrossEntropy,
    Perplexity,
    is_better,
    lower_is_better,
)
from tests.helpers.metrics import assert_interval_is_that_of_resamples

CLASSES = tuple("abcdefg")
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 7, 60)
LOGITS = RANDOM.normal(0, 3, (60, 7)) + 2 * np.eye(7)[LABELS]
SEVERAL = (RANDOM.random((60, 7)) < 0.3).astype(np.float32)


def multiclass(logits=LOGITS, labels=LABELS):
    return Predictions(labels=labels, outputs=logits, classes=CLASSES)


def test_cross_entropy_and_perplexity_are_those_of_torch():
    expected = nn.functional.cross_entropy(torch.from_numpy(LOGITS), torch.from_numpy(LABELS)).item()
    assert CrossEntropy().compute(multiclass()).value == pytest.approx(expected)
    assert Perplexity().compute(multiclass()).value == pytest.approx(np.exp(expected))
    # logits whose exponentials overflow
    assert CrossEntropy().compute(multiclass(1e4 * np.eye(7)[LABELS])).value == 0


def test_binary_cross_entropy_leaves_out_unknown_labels():
    labels = np.where(RANDOM.random(SEVERAL.shape) < 0.2, np.nan, SEVERAL)
    result = CrossEntropy().compute(Predictions(labels=labels, outputs=LOGITS, classes=CLASSES))
    is_known = ~np.isnan(labels)
    probabilities = 1 / (1 + np.exp(-LOGITS))
    assert result.value == pytest.approx(log_loss(labels[is_known], probabilities[is_known]))
    known = is_known[:, 2]
    assert result.by_class["c"] == pytest.approx(log_loss(labels[known, 2], probabilities[known, 2]))


@pytest.mark.parametrize("metric", [CrossEntropy(), Perplexity()])
def test_an_interval_is_that_of_the_metric_of_each_resample(metric):
    assert_interval_is_that_of_resamples(metric, multiclass())


def test_a_lower_loss_is_better():
    for metric in (CrossEntropy(), Perplexity()):
        assert lower_is_better(BootstrapInterval(metric))
        assert is_better(metric, 1.0, 2.0)


def test_options_and_labels_that_do_not_fit_are_refused():
    several = Predictions(labels=SEVERAL, outputs=LOGITS, classes=CLASSES)
    with pytest.raises(DataError, match="Perplexity takes one class per token or sample; use CrossEntropy"):
        Perplexity().compute(several)
    with pytest.raises(DataError, match="outputs must be numbers; got NaN in 60 of 60 samples"):
        CrossEntropy().compute(multiclass(np.full_like(LOGITS, np.nan)))
