"""Metrics that compare predicted numbers with true numbers.

Outputs and labels are (samples,) or (samples, columns). With more dimensions, such as in depth maps, all entries count
as one column. Labels that are NaN are unknown, and left out.
"""

import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdkit.errors import DataError
from kdkit.metrics.base import (
    Bools,
    Floats,
    MetricResult,
    Predictions,
    WithoutThresholds,
    mean_over_classes,
    note_on_missing,
    ratio,
    undefined_by_class,
)
from kdkit.metrics.resampling import CountedMetric, Counts, Resampled
from kdkit.utils.reprs import describe_count


@dataclass(frozen=True, slots=True)
class R2(WithoutThresholds):
    """Coefficient of determination, averaged over the output columns: regression, at most 1.

    A column whose labels are constant, such as zeros, is left out. NaN if all columns are constant.
    """

    name = "r2"
    accepts_unknown: ClassVar[bool] = True

    def compute(self, test: Predictions) -> MetricResult:
        """Return the coefficient. Raises DataError if labels and outputs have different shapes."""
        from sklearn.metrics import r2_score  # late: scikit-learn takes a second to import

        entries = _entries(test)
        if test.labels.ndim > 2:
            labels, outputs = (side.reshape(-1, 1) for side in entries)
        else:
            labels, outputs = (side.reshape(len(side), -1) for side in (test.labels, test.outputs))
        is_known = ~np.isnan(labels.astype(np.float64))
        if not is_known.all():
            return self._of_known(labels, outputs, is_known)
        varies = (labels != labels[:1]).any(0)
        count = int((~varies).sum())
        # scikit-learn returns 0 or 1 for constant columns, and includes them in the mean.
        note = f"constant labels of {describe_count(count, 'column')}" if count else ""
        if not varies.any():
            return MetricResult(value=math.nan, note=note)
        if count:
            labels, outputs = labels[:, varies], outputs[:, varies]
        return MetricResult(value=float(r2_score(labels, outputs)), note=note)

    def _of_known(self, labels: NDArray[Any], outputs: NDArray[Any], is_known: Bools) -> MetricResult:
        """Return the mean over columns, each computed from the samples whose label is known."""
        columns = []
        for column, rows in enumerate(is_known.T):
            part = Predictions(labels=labels[rows, column], outputs=outputs[rows, column], classes=("column",))
            columns.append(self.compute(part).value if rows.any() else math.nan)
        value = float(mean_over_classes(np.array(columns)[:, None])[0])
        count = int(np.isnan(columns).sum())
        note = f"constant or unknown labels of {describe_count(count, 'column')}" if count else ""
        return MetricResult(value=value, note=note)


@dataclass(frozen=True, slots=True)
class MSE(CountedMetric):
    """Mean squared error, averaged over the output columns: regression, in the squared unit of the labels.

    Lower is better.
    """

    name = "mse"
    accepts_unknown: ClassVar[bool] = True
    lower_is_better: ClassVar[bool] = True

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the error for each resample."""
        return _mean_error(test, counts, np.square)


@dataclass(frozen=True, slots=True)
class MAE(CountedMetric):
    """Mean absolute error, averaged over the output columns: regression, in the unit of the labels.

    Lower is better.
    """

    name = "mae"
    accepts_unknown: ClassVar[bool] = True
    lower_is_better: ClassVar[bool] = True

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the error for each resample."""
        return _mean_error(test, counts, np.abs)


@dataclass(frozen=True, slots=True)
class Pearson(CountedMetric):
    """Pearson's correlation of outputs and labels, averaged over the output columns: regression, in [-1, 1].

    It does not depend on the scale or offset of the outputs. A column that is constant on either side is left out.
    """

    name = "pearson"
    accepts_unknown: ClassVar[bool] = True

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the correlation for each resample."""
        labels, outputs = _entries(test)
        is_known = ~np.isnan(labels)
        # With small means, the variances lose fewer digits.
        known = np.maximum(is_known.sum((0, 1)), 1)
        x, y = (side - np.where(is_known, side, 0.0).sum((0, 1)) / known for side in (labels, outputs))

        def mean(entries: Floats) -> Floats:
            return _means(entries, is_known, counts)

        x_mean, y_mean = mean(x), mean(y)
        x_variance, y_variance = mean(x**2) - x_mean**2, mean(y**2) - y_mean**2
        covariance = mean(x * y) - x_mean * y_mean
        # The variance of a constant column is not exactly 0, because the squares of its values are rounded.
        is_defined = (x_variance > _rounding(labels)) & (y_variance > _rounding(outputs))
        scale = np.sqrt(np.where(is_defined, x_variance * y_variance, 1.0))
        by_column = np.where(is_defined, np.clip(covariance / scale, -1, 1), np.nan)
        return Resampled(mean_over_classes(by_column), _by_class(test, by_column))

    def _note(self, test: Predictions, defined: Container[str]) -> str:
        """Return a note that names the columns with an undefined correlation, if the data has a name for each."""
        columns = test.outputs.shape[1] if test.outputs.ndim == 2 else 1
        return note_on_missing(test, defined, "constant") if len(test.classes) == columns else ""


def _entries(test: Predictions) -> tuple[Floats, Floats]:
    """Return the labels and the outputs, each (samples, entries, columns): one entry per column, or many in one column.

    Labels of shape (samples,) are a single column.
    """
    labels = test.labels[:, None] if test.labels.ndim == 1 and test.outputs.ndim == 2 else test.labels
    if labels.shape != test.outputs.shape:
        raise DataError(
            "metrics of numbers compare outputs of shape (samples, columns) with labels of the same shape; got outputs "
            f"{test.outputs.shape} and labels {test.labels.shape}; if labels are packed, pass a metric that unpacks "
            "them, as Recipe(metrics=(...)), or a Net(..., element=...) that packs outputs"
        )
    shape = (len(labels), -1, 1) if labels.ndim > 2 else (len(labels), 1, -1)
    return labels.reshape(shape).astype(np.float64), test.outputs.reshape(shape).astype(np.float64)


def _mean_error(test: Predictions, counts: Counts, measure: Callable[[Floats], Floats]) -> Resampled:
    labels, outputs = _entries(test)
    is_known = ~np.isnan(labels)
    by_column = _means(measure(outputs - labels), is_known, counts)
    has_labels = is_known.any(1).T @ counts > 0  # (columns, resamples)
    values = ratio(np.where(has_labels, by_column, 0.0).sum(0), has_labels.sum(0))
    return Resampled(values, _by_class(test, by_column))


def _means(values: Floats, is_known: Bools, counts: Counts) -> Floats:
    """Return the means of values whose label is known, (samples, entries, columns) -> (columns, resamples).

    NaN for a column without a known label in a resample.
    """
    sums = np.where(is_known, values, 0.0).sum(1).T @ counts
    return ratio(sums, is_known.sum(1).T @ counts.astype(np.float64))


def _by_class(test: Predictions, by_column: Floats) -> Floats:
    """Return values by class, (classes, resamples); NaN unless the data has a name for each column."""
    return by_column if len(by_column) == len(test.classes) else undefined_by_class(test, by_column.shape[1])


def _rounding(values: Floats) -> Floats:
    """Return the largest variance that a constant column may have due to rounding, (columns, 1)."""
    largest: Floats = np.nan_to_num(np.abs(values)).max((0, 1))[:, None]
    return (1e-13 * largest) ** 2
