"""Tests of metrics against scikit-learn, with thresholds fitted on one split and used on another."""

import math
import re
import tracemalloc

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import pearsonr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    recall_score,
    roc_auc_score,
)

from kdkit import DataError, Metric, Predictions
from kdkit.metrics import (
    F1,
    MAE,
    MSE,
    R2,
    Accuracy,
    MacroAUPRC,
    MacroAUROC,
    MacroF1,
    MicroF1,
    Pearson,
    default_metrics,
    regression,
)

CLASSES = ("a", "b", "c")


def multilabel(seed=0, rows=60):
    random = np.random.default_rng(seed)
    labels = (random.random((rows, 3)) < (0.2, 0.5, 0.7)).astype(np.float32)
    outputs = (labels + random.normal(0, 1, labels.shape)).astype(np.float32)
    return Predictions(labels=labels, outputs=outputs, classes=CLASSES)


def multiclass(seed=0, rows=60, classes=CLASSES):
    random, count = np.random.default_rng(seed), len(classes)
    labels = random.permutation(np.arange(rows) % count)
    return Predictions(
        labels=labels, outputs=np.eye(count)[labels] + random.normal(0, 0.8, (rows, count)), classes=classes
    )


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_is_that_of_scikit_learn(average):
    test = multilabel()
    expected = f1_score(test.labels, test.outputs >= 0, average=average)  # a threshold of 0 before fitting
    assert F1(average).compute(test).value == pytest.approx(expected)


def test_the_memory_for_metrics_does_not_grow_with_the_square_of_the_classes():
    count, labels = 20_000, np.arange(8)
    test = Predictions(labels=labels, outputs=np.eye(8, count), classes=tuple(map(str, range(count))))
    tracemalloc.start()
    values = [metric.compute(test).value for metric in (Accuracy(), MacroF1(), MacroAUROC())]
    _current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert values == [1, 1, 1]
    assert peak < count**2 / 8


@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize("count", [3, 80])  # many classes are counted without a matrix
def test_multiclass_f1_is_that_of_scikit_learn(average, count):
    test = multiclass(rows=200, classes=tuple(map(str, range(count))))
    expected = f1_score(test.labels, test.outputs.argmax(1), average=average)
    assert F1(average).fit(test).compute(test).value == pytest.approx(expected)


def test_f1_by_class_is_that_of_scikit_learn():
    test = multilabel()
    expected = f1_score(test.labels, test.outputs >= 0, average=None)
    assert list(MacroF1().compute(test).by_class.values()) == pytest.approx(list(expected))


def test_thresholds_are_fitted_on_one_split_and_used_on_another():
    validation, test = multilabel(0), multilabel(1)
    fitted = MacroF1().fit(validation)
    expected = f1_score(test.labels, test.outputs >= np.array(fitted.thresholds), average="macro")
    assert fitted.compute(test).value == pytest.approx(expected)


def test_fitting_leaves_the_metric_unchanged():
    metric = MacroF1()
    assert metric.fit(multilabel()) is not metric
    assert metric == MacroF1()


def test_fitted_thresholds_are_never_worse_on_the_split_they_were_fitted_on():
    validation = multilabel()
    assert MacroF1().fit(validation).compute(validation).value >= MacroF1().compute(validation).value


def test_accuracy_is_that_of_scikit_learn_with_recalls_by_class():
    test = multiclass()
    result = Accuracy().fit(test).compute(test)
    predicted = test.outputs.argmax(1)
    assert result.value == pytest.approx(accuracy_score(test.labels, predicted))
    assert list(result.by_class.values()) == pytest.approx(list(recall_score(test.labels, predicted, average=None)))


@pytest.mark.parametrize(
    ("metric", "measure"), [(MacroAUPRC(), average_precision_score), (MacroAUROC(), roc_auc_score)]
)
def test_ranking_metrics_are_those_of_scikit_learn(metric, measure):
    test = multilabel()
    assert metric.fit(test).compute(test).value == pytest.approx(measure(test.labels, test.outputs, average="macro"))


@pytest.mark.parametrize("metric", [MacroAUPRC(), MacroAUROC()])
def test_ranking_metrics_are_invariant_to_an_increasing_transformation(metric):
    test = multilabel()
    changed = Predictions(labels=test.labels, outputs=np.exp(test.outputs), classes=CLASSES)
    assert metric.compute(changed).value == pytest.approx(metric.compute(test).value)


def test_r2_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    labels, outputs = random.normal(size=(20, 2)), random.normal(size=(20, 2))
    test = Predictions(labels=labels, outputs=outputs, classes=("x", "y"))
    assert R2().fit(test).compute(test).value == pytest.approx(r2_score(labels, outputs))


def numbers(rows=20, columns=2, seed=0):
    random = np.random.default_rng(seed)
    labels = 5 + random.normal(size=(rows, columns))
    outputs = (labels + random.normal(size=(rows, columns))).astype(np.float32)
    return Predictions(labels=labels, outputs=outputs, classes=("x", "y")[:columns])


def test_r2_leaves_out_columns_of_constant_labels():
    test = numbers()
    labels = np.concatenate([test.labels, np.zeros((20, 1))], 1)
    outputs = np.concatenate([test.outputs, np.ones((20, 1), np.float32)], 1)
    result = R2().compute(Predictions(labels=labels, outputs=outputs, classes=("x", "y", "z")))
    assert (result.value, result.note) == (R2().compute(test).value, "constant or unknown labels: z")
    constant = Predictions(labels=labels[:, 2:], outputs=outputs[:, 2:], classes=("z",))
    assert math.isnan(R2().compute(constant).value)


ERRORS = {MSE(): mean_squared_error, MAE(): mean_absolute_error}


@pytest.mark.parametrize("metric", ERRORS)
@pytest.mark.parametrize("columns", [1, 2])
def test_errors_of_numbers_are_those_of_scikit_learn(metric, columns):
    test, reference = numbers(columns=columns), ERRORS[metric]
    result = metric.fit(test).compute(test)
    assert result.value == pytest.approx(reference(test.labels, test.outputs))
    for column, name in enumerate(test.classes):
        assert result.by_class[name] == pytest.approx(reference(test.labels[:, column], test.outputs[:, column]))


def test_pearson_is_that_of_scipy():
    test = numbers()
    expected = [pearsonr(test.labels[:, column], test.outputs[:, column]).statistic for column in range(2)]
    result = Pearson().fit(test).compute(test)
    assert list(result.by_class.values()) == pytest.approx(expected, rel=1e-12)
    assert result.value == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e6])
def test_pearson_leaves_out_and_names_a_constant_column(offset):
    test = numbers()
    outputs = test.outputs.copy()
    outputs[:, 1] = offset
    result = Pearson().compute(Predictions(labels=test.labels, outputs=outputs, classes=test.classes))
    assert (set(result.by_class), result.note) == ({"x"}, "constant: y")
    assert result.value == result.by_class["x"]


@pytest.mark.parametrize("metric", [MSE(), MAE(), R2(), Pearson()])
def test_labels_of_one_number_per_sample_are_those_of_a_single_column(metric):
    test = numbers(columns=1)
    flat = Predictions(labels=test.labels[:, 0], outputs=test.outputs, classes=test.classes)
    assert metric.compute(flat) == metric.compute(test)


@pytest.mark.parametrize("metric", [MSE(), MAE(), R2(), Pearson()])
@pytest.mark.parametrize("shape", [(20, 4, 4), (20, 3), (20,)])
def test_metrics_of_numbers_refuse_labels_of_another_shape_than_the_outputs(metric, shape):
    test = Predictions(labels=np.zeros(shape), outputs=np.zeros((20, 2)), classes=("x", "y"))
    with pytest.raises(DataError, match=rf"got outputs \(20, 2\) and labels {re.escape(str(shape))}"):
        metric.compute(test)


@pytest.mark.parametrize("metric", [MSE(), MAE(), R2(), Pearson()])
def test_resamples_of_metrics_of_numbers_are_those_of_repeated_samples(metric):
    test = numbers()
    counts = np.random.default_rng(0).integers(0, 4, (20, 5)).astype(np.float32)
    resampled = metric.resampled(test, counts)
    for column in range(5):
        repeated = metric.compute(test.rows(np.repeat(np.arange(20), counts[:, column].astype(int))))
        assert resampled.values[column] == pytest.approx(repeated.value)
        assert resampled.by_class[:, column] == pytest.approx(list(repeated.by_class.values()))


@pytest.mark.parametrize("metric", [MSE(), MAE(), R2(), Pearson()])
def test_metrics_of_maps_are_computed_in_blocks_that_take_less_memory_than_the_maps(metric, monkeypatch):
    monkeypatch.setattr(regression, "_BLOCK", 10_000)
    labels, noise = np.random.default_rng(0).random((2, 20, 1, 100, 200), dtype=np.float32)
    maps = Predictions(labels=labels, outputs=labels + noise, classes=("depth",))
    tracemalloc.start()
    value = metric.compute(maps).value
    _current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < labels.nbytes
    column = Predictions(labels=labels.reshape(-1, 1), outputs=maps.outputs.reshape(-1, 1), classes=("depth",))
    assert value == pytest.approx(metric.compute(column).value)


def without_positives_of_c():
    test = multilabel()
    labels = test.labels.copy()
    labels[:, 2] = 0
    return Predictions(labels=labels, outputs=test.outputs, classes=CLASSES)


@pytest.mark.parametrize("metric", [MacroAUPRC(), MacroAUROC(), MacroF1()])
def test_a_class_without_positives_is_named_and_not_averaged_in(metric):
    result = metric.compute(without_positives_of_c())
    assert result.note.endswith(": c")
    assert result.value == pytest.approx(np.mean([result.by_class["a"], result.by_class["b"]]))


def test_a_class_without_negatives_has_no_roc_curve_but_a_precision():
    test = multilabel()
    labels = test.labels.copy()
    labels[:, 1] = 1  # without negatives there is no false positive rate
    test = Predictions(labels=labels, outputs=test.outputs, classes=CLASSES)
    assert "b" in MacroAUROC().compute(test).note
    assert MacroAUPRC().compute(test).by_class["b"] == pytest.approx(1)


@pytest.mark.parametrize("metric", [MacroAUPRC(), MacroAUROC(), MacroF1()])
def test_a_metric_without_any_positives_is_nan(metric):
    empty = Predictions(labels=np.zeros((4, 3)), outputs=np.zeros((4, 3)), classes=CLASSES)
    assert math.isnan(metric.compute(empty).value)


def test_micro_f1_counts_predictions_of_classes_without_positives_as_wrong():
    test = without_positives_of_c()
    expected = f1_score(test.labels, test.outputs >= 0, average="micro", zero_division=0)
    assert MicroF1().compute(test).value == pytest.approx(expected)


@pytest.mark.parametrize("metric", [MacroAUPRC(), MacroAUROC()])
def test_outputs_that_are_not_finite_cannot_be_ranked(metric):
    broken = Predictions(labels=np.eye(3), outputs=np.full((3, 3), np.nan), classes=CLASSES)
    with pytest.raises(DataError, match="did training diverge"):
        metric.compute(broken)


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_every_task_has_default_metrics_with_distinct_names(task):
    metrics = default_metrics(task)
    assert metrics
    assert all(isinstance(metric, Metric) for metric in metrics)
    assert len({metric.name for metric in metrics}) == len(metrics)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("metric", [MacroAUPRC(), MacroAUROC()])
def test_multiclass_areas_are_those_of_the_softmax(metric, classes):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 200)
    outputs = np.eye(classes)[labels] + random.normal(0, 1, (200, classes))
    # what is added to all logits of a sample changes no probability
    shifted = outputs + random.normal(0, 5, (200, 1))
    expected = np.mean(
        [
            {"macro_auprc": average_precision_score, "macro_auroc": roc_auc_score}[metric.name](
                labels == label, softmax(outputs, 1)[:, label]
            )
            for label in range(classes)
        ]
    )
    for logits in (outputs, shifted):
        test = Predictions(labels=labels, outputs=logits, classes=CLASSES[:classes])
        assert metric.compute(test).value == pytest.approx(expected)


def test_samples_of_which_a_net_is_very_sure_are_ranked_too():
    outputs = np.array([[60, 0], [50, 0], [40, 0], [-50, 0]], dtype=np.float32)  # float64 rounds all three to 1
    test = Predictions(labels=np.array([0, 0, 1, 1]), outputs=outputs, classes=("a", "b"))
    assert MacroAUROC().compute(test).value == 1
