"""Metrics that compare predicted numbers with true numbers.

Outputs and labels are (samples,) or (samples, columns). With more dimensions, such as in depth maps, all entries count
as one column. Labels that are NaN are unknown, and left out.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from kdkit.errors import DataError
from kdkit.metrics.base import Bools, Floats, Predictions, ratio, undefined_by_class
from kdkit.metrics.resampling import CountedMetric, Counts, Resampled


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
        labels, outputs = _entries(test)
        is_known = ~np.isnan(labels)
        centred = _centred(labels, is_known)
        errors = _means(np.square(outputs - labels), is_known, counts)
        squares = _means(centred**2, is_known, counts)
        variance = squares - _means(centred, is_known, counts) ** 2
        varies = variance > _rounding(labels, squares)
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
        labels, outputs = _entries(test)
        is_known = ~np.isnan(labels)
        mean = partial(_means, is_known=is_known, counts=counts)
        x, y = _centred(labels, is_known), _centred(outputs, is_known)
        x_mean, y_mean, x_squares, y_squares = mean(x), mean(y), mean(x**2), mean(y**2)
        x_variance, y_variance = x_squares - x_mean**2, y_squares - y_mean**2
        covariance = mean(x * y) - x_mean * y_mean
        # not `>`, so that an output of NaN is not left out
        varies = (x_variance > _rounding(labels, x_squares)) & ~(y_variance <= _rounding(outputs, y_squares))
        scale = np.sqrt(np.where(varies, x_variance * y_variance, 1.0))
        return _over_columns(test, np.clip(covariance / scale, -1, 1), varies)


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
    has_labels = is_known.any(1).T @ counts > 0  # (columns, resamples)
    return _over_columns(test, _means(measure(outputs - labels), is_known, counts), has_labels)


def _over_columns(test: Predictions, by_column: Floats, is_defined: Bools) -> Resampled:
    """Return the mean over the columns that are defined, and values by class if the data has a name for each column.

    by_column, is_defined: (columns, resamples). A defined value is NaN if an output is.
    """
    values = ratio(np.where(is_defined, by_column, 0.0).sum(0), is_defined.sum(0))
    if len(by_column) != len(test.classes):
        return Resampled(values, undefined_by_class(test, len(values)))
    return Resampled(values, np.where(is_defined, by_column, np.nan))


def _centred(values: Floats, is_known: Bools) -> Floats:
    """Return values minus the mean of those whose label is known: with small means, variances lose fewer digits."""
    known = np.maximum(is_known.sum((0, 1)), 1)
    centred: Floats = values - np.where(is_known, values, 0.0).sum((0, 1)) / known
    return centred


def _means(values: Floats, is_known: Bools, counts: Counts) -> Floats:
    """Return the means of values whose label is known, (samples, entries, columns) -> (columns, resamples).

    NaN for a column without a known label in a resample.
    """
    sums = np.where(is_known, values, 0.0).sum(1).T @ counts
    return ratio(sums, is_known.sum(1).T @ counts.astype(np.float64))


def _rounding(values: Floats, squares: Floats) -> Floats:
    """Return the largest variance that a column may have due to rounding if it is constant, (columns, resamples).

    squares: the means of the squares of the centred values, (columns, resamples).
    """
    largest: Floats = np.nan_to_num(np.abs(values)).max((0, 1))[:, None]
    # A column that is constant only in a resample has another mean there: its variance is a difference of two sums.
    return (1e-13 * largest) ** 2 + 1e-15 * values[..., 0].size * squares
