"""Tests of calibration error and Brier metric against their definitions, bin by bin and sample by sample."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from kdkit import DataError, Predictions, RecipeError
from kdkit.metrics import Accuracy, Brier, CalibrationError, is_better, lower_is_better


def logit(probability):
    return np.log(probability / (1 - probability))


def multilabel(rows=3000, seed=0, calibrated=True):
    random = np.random.default_rng(seed)
    probabilities = random.uniform(0.02, 0.98, (rows, 3))
    labels = (random.random(probabilities.shape) < probabilities).astype(np.float32)
    return Predictions(labels=labels, outputs=logit(probabilities) * (1 if calibrated else 4), classes=("a", "b", "c"))


def multiclass(rows=400, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows)
    return Predictions(
        labels=labels, outputs=np.eye(3)[labels] + random.normal(0, 1, (rows, 3)), classes=("a", "b", "c")
    )


def error_over_bins(probabilities, truth, edges):
    """Return the error by its definition: the sum over bins of share times |confidence - frequency|."""
    error = 0.0
    for low, high in pairwise(edges):
        in_bin = (probabilities >= low) & ((probabilities < high) | (high == edges[-1]))
        if in_bin.any():
            error += in_bin.mean() * abs(probabilities[in_bin].mean() - truth[in_bin].mean())
    return error


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("bins", ["equal_width", "equal_mass"])
def test_the_error_of_each_class_follows_its_definition(bins):
    test = multilabel(calibrated=False)
    result = CalibrationError(bins, count=10).compute(test)
    for column, name in enumerate(test.classes):
        probabilities = sigmoid(test.outputs[:, column])
        edges = np.linspace(0, 1, 11)
        edges = edges if bins == "equal_width" else np.quantile(probabilities, edges)
        assert result.by_class[name] == pytest.approx(error_over_bins(probabilities, test.labels[:, column], edges))
    assert result.value == pytest.approx(np.mean(list(result.by_class.values())))


def test_the_multiclass_error_is_the_gap_between_confidence_and_accuracy():
    test = multiclass()
    exponentials = np.exp(test.outputs)
    confidence = (exponentials / exponentials.sum(1, keepdims=True)).max(1)
    is_right = test.outputs.argmax(1) == test.labels
    result = CalibrationError(count=10).compute(test)
    assert result.value == pytest.approx(error_over_bins(confidence, is_right, np.linspace(0, 1, 11)))
    assert result.by_class == {}
    gap = abs(confidence.mean() - Accuracy().compute(test).value)
    assert CalibrationError(count=1).compute(test).value == pytest.approx(gap)


@pytest.mark.parametrize("bins", ["equal_width", "equal_mass"])
def test_true_probabilities_are_calibrated_and_overconfident_ones_are_not(bins):
    assert CalibrationError(bins).compute(multilabel()).value < 0.03
    assert CalibrationError(bins).compute(multilabel(calibrated=False)).value > 0.1


def test_equal_probabilities_share_a_bin_of_equal_mass():
    test = multilabel()
    constant = Predictions(labels=test.labels, outputs=np.full(test.outputs.shape, logit(0.9)), classes=test.classes)
    expected = np.abs(0.9 - test.labels.mean(0)).mean()
    assert CalibrationError("equal_mass").compute(constant).value == pytest.approx(expected)


def test_brier_is_the_mean_squared_error_of_each_class():
    test = multilabel()
    result = Brier().compute(test)
    for column, name in enumerate(test.classes):
        expected = brier_score_loss(test.labels[:, column], sigmoid(test.outputs[:, column].astype(float)))
        assert result.by_class[name] == pytest.approx(expected)
    assert result.value == pytest.approx(np.mean(list(result.by_class.values())))


def test_multiclass_brier_is_summed_over_classes():
    outputs = np.array([[100.0, 0], [100.0, 0]])
    test = Predictions(labels=np.array([0, 1]), outputs=outputs, classes=("a", "b"))
    assert Brier().compute(test).value == pytest.approx(1.0)  # the second sample is wrong in both classes


@pytest.mark.parametrize("metric", [CalibrationError(), Brier()])
def test_a_class_without_positives_is_counted_and_named(metric):
    test = multilabel()
    labels = test.labels.copy()
    labels[:, 2] = 0
    result = metric.compute(Predictions(labels=labels, outputs=test.outputs, classes=test.classes))
    assert result.note == "no positives: c"
    assert result.value == pytest.approx(np.mean([result.by_class[name] for name in "abc"]))


@pytest.mark.parametrize("metric", [CalibrationError(), Brier()])
def test_outputs_that_are_not_finite_are_refused(metric):
    broken = Predictions(labels=np.eye(3), outputs=np.full((3, 3), np.nan), classes=("a", "b", "c"))
    with pytest.raises(DataError, match="did training diverge"):
        metric.compute(broken)


def test_lower_values_of_an_error_are_better():
    assert lower_is_better(CalibrationError())
    assert not lower_is_better(Accuracy())
    assert is_better(Brier(), 0.1, 0.2)
    assert not is_better(Brier(), 0.2, 0.1)
    assert is_better(Accuracy(), 0.2, 0.1)


@pytest.mark.parametrize("metric", [Brier(), Accuracy()])
def test_any_number_is_better_than_nan(metric):
    assert is_better(metric, 0.5, float("nan"))
    assert not is_better(metric, float("nan"), 0.5)
    assert not is_better(metric, float("nan"), float("nan"))


def test_bins_that_do_not_exist_are_refused():
    with pytest.raises(RecipeError, match="equal_mass"):
        CalibrationError("equal_mas")
    with pytest.raises(RecipeError, match="number of bins, must be an integer of at least 1; got 0"):
        CalibrationError(count=0)
