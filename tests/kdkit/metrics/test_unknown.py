"""Metrics leave unknown labels out: each class has the value of its known samples alone."""

import numpy as np
import pytest

from kdkit.metrics import (
    F1,
    MAE,
    MSE,
    R2,
    BestF1,
    BootstrapInterval,
    Brier,
    CalibrationError,
    FixedThresholds,
    MacroAUPRC,
    MacroAUROC,
    MacroF1,
    MicroF1,
    Pearson,
    Predictions,
    YoudenJ,
)
from kdkit.metrics.base import known_rows, unknown_labels

CLASSES = ("a", "b", "c")
BY_CLASS = [
    MacroAUPRC(),
    MacroAUROC(),
    MacroF1(),
    MacroF1(thresholds_by=YoudenJ()),
    MacroF1(thresholds_by=FixedThresholds(0.2)),
    Brier(),
    CalibrationError(),
    CalibrationError("equal_mass", 5),
]


def predictions(seed=0, rows=80, unknown=0.3):
    random = np.random.default_rng(seed)
    labels = (random.random((rows, 3)) < (0.3, 0.5, 0.7)).astype(np.float32)
    outputs = (labels + random.normal(0, 1, labels.shape)).astype(np.float32).round(1)  # with ties
    labels[random.random(labels.shape) < unknown] = np.nan
    return Predictions(labels=labels, outputs=outputs, classes=CLASSES)


def known_samples(test, column):
    """Return the predictions of one class, with the samples whose label is known."""
    rows = ~np.isnan(test.labels[:, column])
    return Predictions(
        labels=test.labels[rows, column : column + 1],
        outputs=test.outputs[rows, column : column + 1],
        classes=CLASSES[column : column + 1],
    )


@pytest.mark.parametrize("metric", BY_CLASS, ids=lambda metric: metric.name)
def test_the_value_of_a_class_is_that_of_its_known_samples(metric):
    validation, test = predictions(seed=1), predictions()
    result = metric.fit(validation).compute(test)
    for column, name in enumerate(CLASSES):
        alone = metric.fit(known_samples(validation, column)).compute(known_samples(test, column))
        assert result.by_class[name] == pytest.approx(alone.value)
    assert result.value == pytest.approx(np.mean(list(result.by_class.values())))


def test_micro_f1_counts_the_known_decisions():
    test = predictions()
    is_known = ~np.isnan(test.labels)
    flat = Predictions(labels=test.labels[is_known][:, None], outputs=test.outputs[is_known][:, None], classes=("all",))
    assert MicroF1().compute(test).value == pytest.approx(MicroF1().compute(flat).value)


@pytest.mark.parametrize("metric", [*BY_CLASS, MicroF1()], ids=lambda metric: metric.name)
def test_resamples_leave_unknown_labels_out_too(metric):
    test = predictions()
    fitted = metric.fit(test)
    counts = np.random.default_rng(0).integers(0, 4, (80, 5)).astype(np.float32)
    resampled = fitted.resampled(test, counts)
    for column in range(5):
        repeated = fitted.compute(test.rows(np.repeat(np.arange(80), counts[:, column].astype(int))))
        if getattr(metric, "bins", None) != "equal_mass":  # resamples use the bins of the split
            assert resampled.values[column] == pytest.approx(repeated.value, rel=1e-5)


@pytest.mark.parametrize("metric", [*BY_CLASS, F1("micro", thresholds_by=BestF1())], ids=lambda metric: metric.name)
def test_a_class_without_known_labels_is_left_out(metric):
    test = predictions()
    labels = test.labels.copy()
    labels[:, 1] = np.nan
    result = metric.compute(Predictions(labels=labels, outputs=test.outputs, classes=CLASSES))
    assert "b" not in result.by_class
    assert np.isfinite(result.value)
    assert "b" in result.note
    interval = BootstrapInterval(metric, resamples=20)
    assert np.isfinite(
        interval.compute(Predictions(labels=labels, outputs=test.outputs, classes=CLASSES)).interval
    ).all()


def test_rows_are_known_unless_their_label_is_nan():
    test = predictions(unknown=0)
    assert unknown_labels(test) is None
    assert all(len(rows) == 80 for rows in known_rows(test))
    assert [len(rows) for rows in known_rows(predictions())] == (~np.isnan(predictions().labels)).sum(0).tolist()


@pytest.mark.parametrize("metric", [MSE(), MAE(), R2(), Pearson()], ids=lambda metric: metric.name)
def test_a_metric_of_numbers_is_the_mean_over_columns_of_their_known_samples(metric):
    random = np.random.default_rng(0)
    labels = random.normal(size=(60, 3)).astype(np.float32)
    outputs = labels + random.normal(size=labels.shape).astype(np.float32)
    labels[::3, 0], labels[:, 2] = np.nan, np.nan  # some unknown labels, and a column of them
    test = Predictions(labels=labels, outputs=outputs, classes=CLASSES)
    columns = [metric.compute(known_samples(test, column)).value for column in (0, 1)]
    assert metric.compute(test).value == pytest.approx(np.mean(columns))
    flat = Predictions(labels=labels[:, 0], outputs=outputs[:, 0], classes=("a",))
    assert metric.compute(flat).value == pytest.approx(columns[0])
    low, high = BootstrapInterval(metric, resamples=50).compute(test).interval
    assert low < metric.compute(test).value < high


@pytest.mark.parametrize("metric", [MSE(), MAE(), R2(), Pearson()], ids=lambda metric: metric.name)
def test_an_output_that_is_not_a_number_is_not_left_out(metric):
    labels = np.array([[1.0, np.nan], [2.0, 3.0], [3.0, 4.0]])
    outputs = np.array([[1.0, 1.0], [2.0, np.nan], [2.0, 1.0]])
    assert np.isnan(metric.compute(Predictions(labels=labels, outputs=outputs, classes=("a", "b"))).value)
