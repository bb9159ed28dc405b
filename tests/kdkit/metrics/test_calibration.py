"""Calibration error and Brier score: against their definitions, bin by bin and sample by sample."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from kdkit import DataError, Predictions, RecipeError
from kdkit.metrics import Accuracy, Brier, CalibrationError, better, lower_is_better


def logit(probability):
    return np.log(probability / (1 - probability))


def multilabel(rows=3000, seed=0, calibrated=True):
    random = np.random.default_rng(seed)
    true = random.uniform(0.02, 0.98, (rows, 3))
    labels = (random.random(true.shape) < true).astype(np.float32)
    return Predictions(labels=labels, outputs=logit(true) * (1 if calibrated else 4), classes=("a", "b", "c"))


def multiclass(rows=400, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows)
    return Predictions(
        labels=labels, outputs=np.eye(3)[labels] + random.normal(0, 1, (rows, 3)), classes=("a", "b", "c")
    )


def by_bins(probabilities, truth, edges):
    """Return the error as it is defined: over bins, share times |confidence - frequency|."""
    error = 0.0
    for low, high in pairwise(edges):
        held = (probabilities >= low) & ((probabilities < high) | (high == edges[-1]))
        if held.any():
            error += held.mean() * abs(probabilities[held].mean() - truth[held].mean())
    return error


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("bins", ["equal_width", "equal_mass"])
def test_the_error_of_each_class_is_that_of_its_bins(bins):
    test = multilabel(calibrated=False)
    compute_metrics = CalibrationError(bins, count=10).compute(test)
    for column, name in enumerate(test.classes):
        probabilities = sigmoid(test.outputs[:, column])
        edges = np.linspace(0, 1, 11)
        edges = edges if bins == "equal_width" else np.quantile(probabilities, edges)
        assert compute_metrics.by_class[name] == pytest.approx(by_bins(probabilities, test.labels[:, column], edges))
    assert compute_metrics.value == pytest.approx(np.mean(list(compute_metrics.by_class.values())))


def test_of_classes_that_exclude_each_other_it_is_the_gap_between_confidence_and_accuracy():
    test = multiclass()
    raised = np.exp(test.outputs)
    confidence = (raised / raised.sum(1, keepdims=True)).max(1)
    right = test.outputs.argmax(1) == test.labels
    compute_metrics = CalibrationError(count=10).compute(test)
    assert compute_metrics.value == pytest.approx(by_bins(confidence, right, np.linspace(0, 1, 11)))
    assert compute_metrics.by_class == {}
    alone = abs(confidence.mean() - Accuracy().compute(test).value)
    assert CalibrationError(count=1).compute(test).value == pytest.approx(alone)


@pytest.mark.parametrize("bins", ["equal_width", "equal_mass"])
def test_true_probabilities_are_calibrated_and_bold_ones_are_not(bins):
    assert CalibrationError(bins).compute(multilabel()).value < 0.03
    assert CalibrationError(bins).compute(multilabel(calibrated=False)).value > 0.1


def test_bins_of_equal_mass_hold_equal_probabilities_together():
    test = multilabel()
    same = Predictions(labels=test.labels, outputs=np.full(test.outputs.shape, logit(0.9)), classes=test.classes)
    expected = np.abs(0.9 - test.labels.mean(0)).mean()
    assert CalibrationError("equal_mass").compute(same).value == pytest.approx(expected)


def test_brier_is_the_mean_square_of_each_class():
    test = multilabel()
    compute_metrics = Brier().compute(test)
    for column, name in enumerate(test.classes):
        expected = brier_score_loss(test.labels[:, column], sigmoid(test.outputs[:, column].astype(float)))
        assert compute_metrics.by_class[name] == pytest.approx(expected)
    assert compute_metrics.value == pytest.approx(np.mean(list(compute_metrics.by_class.values())))


def test_brier_of_classes_that_exclude_each_other_is_summed_over_them():
    sure = np.array([[100.0, 0], [100.0, 0]])
    test = Predictions(labels=np.array([0, 1]), outputs=sure, classes=("a", "b"))
    assert Brier().compute(test).value == pytest.approx(1.0)  # one right, one wrong in both classes


@pytest.mark.parametrize("score", [CalibrationError(), Brier()])
def test_a_class_without_positives_is_counted_and_named(score):
    test = multilabel()
    labels = test.labels.copy()
    labels[:, 2] = 0
    compute_metrics = score.compute(Predictions(labels=labels, outputs=test.outputs, classes=test.classes))
    assert compute_metrics.note == "no positives: c"
    assert compute_metrics.value == pytest.approx(np.mean([compute_metrics.by_class[name] for name in "abc"]))


@pytest.mark.parametrize("score", [CalibrationError(), Brier()])
def test_outputs_that_are_no_numbers_make_no_probabilities(score):
    broken = Predictions(labels=np.eye(3), outputs=np.full((3, 3), np.nan), classes=("a", "b", "c"))
    with pytest.raises(DataError, match="did training diverge"):
        score.compute(broken)


def test_of_an_error_the_lower_figure_is_better():
    assert lower_is_better(CalibrationError())
    assert not lower_is_better(Accuracy())
    assert better(Brier(), 0.1, 0.2)
    assert not better(Brier(), 0.2, 0.1)
    assert better(Accuracy(), 0.2, 0.1)


@pytest.mark.parametrize("score", [Brier(), Accuracy()])
def test_no_figure_is_better_than_none_and_none_is_worse(score):
    assert better(score, 0.5, float("nan"))
    assert not better(score, float("nan"), 0.5)
    assert not better(score, float("nan"), float("nan"))


def test_bins_that_do_not_exist_are_refused():
    with pytest.raises(RecipeError, match="equal_mass"):
        CalibrationError("equal_mas")
    with pytest.raises(RecipeError, match="1 or more"):
        CalibrationError(count=0)
