"""Metrics that compare predicted numbers with true numbers.

Outputs and labels are (samples,) or (samples, columns). With more dimensions, such as in depth maps, all entries count
as one column. Labels that are NaN are unknown, and left out.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdkit.errors import DataError
from kdkit.metrics.base import Bools, Floats, Predictions, ratio, row_blocks, undefined_by_class
from kdkit.metrics.resampling import CountedMetric, Counts, Resampled, unit_counts

Measure = Callable[[Floats, Floats], Floats]

_BLOCK = 1 << 19  # how many entries are processed at a time


class _ColumnMetric(CountedMetric):
    """Base class of metrics that leave out columns, which a note names if the data has a name for each."""

    __slots__ = ()

    def _note(self, test: Predictions, defined: Container[str]) -> str:
        columns = test.outputs.shape[1] if test.outputs.ndim == 2 else 1
        return super()._note(test, defined) if len(test.classes) == columns else ""


@dataclass(frozen=True, slots=True)
class R2(_ColumnMetric):
    """Coefficient of determination, averaged over the output columns: regression, at most 1.

    A column whose labels are constant, such as zeros, is left out. NaN if all columns are constant.
    """

    name = "r2"
    missing: ClassVar[str] = "constant or unknown labels"
    accepts_unknown: ClassVar[bool] = True

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the coefficient for each resample."""
        centre, _ = _centres(test)
        errors, offset, squares = _means(
            test, counts, lambda x, y: (y - x) ** 2, lambda x, _: x - centre, lambda x, _: (x - centre) ** 2
        )
        variance = squares - offset**2
        varies = variance > _rounding(test.labels, squares)
        return _over_columns(test, 1 - errors / np.where(varies, variance, 1.0), varies)


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
class Pearson(_ColumnMetric):
    """Pearson's correlation of outputs and labels, averaged over the output columns: regression, in [-1, 1].

    It does not depend on the scale or offset of the outputs. A column that is constant on either side is left out.
    """

    name = "pearson"
    missing: ClassVar[str] = "constant"
    accepts_unknown: ClassVar[bool] = True

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the correlation for each resample."""
        left, right = _centres(test)
        x_mean, y_mean, x_squares, y_squares, products = _means(
            test,
            counts,
            lambda x, _: x - left,
            lambda _, y: y - right,
            lambda x, _: (x - left) ** 2,
            lambda _, y: (y - right) ** 2,
            lambda x, y: (x - left) * (y - right),
        )
        x_variance, y_variance = x_squares - x_mean**2, y_squares - y_mean**2
        covariance = products - x_mean * y_mean
        # not `>`, so that an output of NaN is not left out
        varies = (x_variance > _rounding(test.labels, x_squares)) & ~(y_variance <= _rounding(test.outputs, y_squares))
        scale = np.sqrt(np.where(varies, x_variance * y_variance, 1.0))
        return _over_columns(test, np.clip(covariance / scale, -1, 1), varies)


def _entries(test: Predictions) -> tuple[NDArray[Any], NDArray[Any]]:
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
    return _by_column(labels), _by_column(test.outputs)


def _by_column(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape((len(values), -1, 1) if values.ndim > 2 else (len(values), 1, -1))


def _mean_error(test: Predictions, counts: Counts, measure: Callable[[Floats], Floats]) -> Resampled:
    errors, has_labels = _means(
        test, counts, lambda labels, outputs: measure(outputs - labels), lambda labels, _: np.ones(labels.shape)
    )
    return _over_columns(test, errors, ~np.isnan(has_labels))


def _over_columns(test: Predictions, by_column: Floats, is_defined: Bools) -> Resampled:
    """Return the mean over the columns that are defined, and values by class if the data has a name for each column.

    by_column, is_defined: (columns, resamples). A defined value is NaN if an output is.
    """
    values = ratio(np.where(is_defined, by_column, 0.0).sum(0), is_defined.sum(0))
    if len(by_column) != len(test.classes):
        return Resampled(values, undefined_by_class(test, len(values)))
    return Resampled(values, np.where(is_defined, by_column, np.nan))


def _means(test: Predictions, counts: Counts, *measures: Measure) -> list[Floats]:
    """Return the mean of each measure over the entries whose label is known, (columns, resamples) each.

    measures: functions of labels and outputs, (samples, entries, columns) -> (samples, entries, columns).
    NaN for a column without a known label in a resample.
    """
    labels, outputs = _entries(test)
    # In blocks of samples, because maps take as much memory as the machine can spare, and float64 takes twice of it.
    parts = []
    for rows in row_blocks(labels.shape, _BLOCK):
        x, y = (side[rows].astype(np.float64) for side in (labels, outputs))
        is_known = ~np.isnan(x)
        sums = [np.where(is_known, measure(x, y), 0.0).sum(1) for measure in measures]
        parts.append([is_known.sum(1).astype(np.float64), *sums])
    known, *totals = (np.concatenate(blocks) for blocks in zip(*parts, strict=True))
    whole = known.T @ counts.astype(np.float64)
    return [ratio(sums.T @ counts, whole) for sums in totals]


def _centres(test: Predictions) -> list[Floats]:
    """Return the means of the labels that are known, and of their outputs, (columns,) each; 0 if none is known.

    The variances of values minus these lose fewer digits.
    """
    means = _means(test, unit_counts(test), lambda labels, _: labels, lambda _, outputs: outputs)
    return [np.nan_to_num(mean[:, 0]) for mean in means]


def _rounding(values: NDArray[Any], squares: Floats) -> Floats:
    """Return the largest variance that a column may have due to rounding if it is constant, (columns, resamples).

    squares: the means of the squares of the centred values, (columns, resamples).
    """
    values = _by_column(values)
    bounds = [function.reduce(values, axis=(0, 1)) for function in (np.fmax, np.fmin)]  # these leave out NaN
    largest = np.nan_to_num(np.abs(bounds).max(0).astype(np.float64))[:, None]
    # A column that is constant only in a resample has another mean there: its variance is a difference of two sums.
    rounding: Floats = (1e-13 * largest) ** 2 + 1e-15 * values[..., 0].size * squares
    return rounding
