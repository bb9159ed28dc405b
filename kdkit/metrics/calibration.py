"""Scores of probabilities: whether what is said with 80 % is true 80 times of 100."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from kdkit.errors import DataError, RecipeError, did_you_mean
from kdkit.metrics.base import Bools, Floats, MetricResult, Predictions, defined, true_classes, without
from kdkit.metrics.bootstrap import Counts, Resampled, blocks, once

Bins = Literal["equal_width", "equal_mass"]


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """Expected calibration error, in [0, 1]; lower is better.

    The mean over bins, by their share of the samples, of |mean probability - share that is true|. Multilabel: of each
    class's sigmoid, and their mean; a class without positives counts, since what was said of it was wrong. Multiclass:
    of the greatest softmax and whether it is right (Guo et al. 2017, equation 3).
    bins: of equal width, or "equal_mass", which rare classes need (Nixon et al. 2019). Equal probabilities
    share a bin. In resamples the bins stay those of the split.
    """

    bins: Bins = "equal_width"
    count: int = 15
    lower_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bins not in get_args(Bins):
            raise RecipeError(f"bins={self.bins!r} is not known; {did_you_mean(str(self.bins), get_args(Bins))}")
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise RecipeError(f"count is a whole number of bins, 1 or more, such as 15; got {self.count!r}")

    @property
    def name(self) -> str:
        """The name in tables."""
        return "calibration_error" if self.bins == "equal_width" else f"calibration_error_{self.bins}"

    def fit(self, validation: Predictions) -> Self:
        """There is nothing to choose."""
        return self

    def compute(self, test: Predictions) -> MetricResult:
        """Return the error, and each class's own where a sample may have several."""
        return _scored(self.resampled(test, once(test)), test)

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the error of each resample."""
        probabilities, truth = _probabilities(test), true_classes(test)
        if test.labels.ndim == 1:
            right = test.outputs.argmax(1) == test.labels
            probabilities, truth = probabilities.max(1, keepdims=True), right[:, None]
        excesses = [self._excess(*column) for column in zip(probabilities.T, truth.T, strict=True)]
        errors = np.concatenate([_errors(excesses, some.astype(np.float64)) for some in blocks(counts)], axis=1)
        undefined = np.full((len(test.classes), errors.shape[1]), np.nan)
        return Resampled(errors.mean(0), undefined if test.labels.ndim == 1 else errors)

    def _excess(self, probabilities: Floats, truth: Bools) -> Any:
        """Return the sparse (bins, n) of how much more was said of each sample than was true."""
        from scipy.sparse import csr_matrix  # scipy.sparse takes a while to import

        edges = np.linspace(0, 1, self.count + 1)
        if self.bins == "equal_mass":
            edges = np.quantile(probabilities, edges)
        bins = np.searchsorted(edges[1:-1], probabilities, side="right")
        return csr_matrix((probabilities - truth, (bins, np.arange(len(bins)))), shape=(self.count, len(bins)))


@dataclass(frozen=True, slots=True)
class Brier:
    """Mean squared error of probabilities; lower is better (Brier 1950).

    Multilabel: of each class's sigmoid, and their mean, in [0, 1]. Multiclass: of the softmax, summed over the classes,
    in [0, 2].
    """

    lower_is_better: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name in tables."""
        return "brier"

    def fit(self, validation: Predictions) -> Self:
        """There is nothing to choose."""
        return self

    def compute(self, test: Predictions) -> MetricResult:
        """Return the error, and what each class has in it."""
        return _scored(self.resampled(test, once(test)), test)

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the error of each resample."""
        squares = (_probabilities(test) - true_classes(test)) ** 2
        by_class = squares.T @ counts / counts.sum(0, dtype=np.float64)
        return Resampled(by_class.sum(0) if test.labels.ndim == 1 else by_class.mean(0), by_class)


def _probabilities(test: Predictions) -> Floats:
    """Return (n, classes): the softmax of classes that exclude each other, else the sigmoid."""
    logits = np.asarray(test.outputs, dtype=np.float64)
    if not np.isfinite(logits).all():
        raise DataError("outputs that are not finite make no probabilities; did training diverge?")
    probabilities: Floats
    if test.labels.ndim == 1:
        raised = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = raised / raised.sum(1, keepdims=True)
    else:
        probabilities = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return probabilities


def _scored(resampled: Resampled, test: Predictions) -> MetricResult:
    positives = true_classes(test).sum(0).tolist()
    there = [name for name, count in zip(test.classes, positives, strict=True) if count]
    return MetricResult(
        value=float(resampled.values[0]),
        by_class=defined(test, resampled.by_class[:, 0]),
        note=without(test, there),
    )


def _errors(excesses: Sequence[Any], counts: Floats) -> Floats:
    """Return (columns, resamples). A bin's share times its gap is |the sum of its excess| over all samples."""
    errors: Floats = np.stack([np.abs(each @ counts).sum(0) for each in excesses]) / counts.sum(0)
    return errors
