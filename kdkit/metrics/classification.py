"""Scores of answers: what is said, against what is true."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self, get_args

import numpy as np

from kdkit.errors import RecipeError, did_you_mean
from kdkit.metrics.base import Bools, Floats, MetricResult, Predictions, defined, mean_of, true_classes, without
from kdkit.metrics.bootstrap import Counts, Resampled, once
from kdkit.metrics.thresholds import BestF1, Thresholds, require_thresholds

Average = Literal["macro", "micro"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of the samples whose greatest output is their class: multiclass, in [0, 1]."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "accuracy"

    def fit(self, validation: Predictions) -> Self:
        """There is nothing to choose."""
        return self

    def compute(self, test: Predictions) -> MetricResult:
        """Return the share, and each class's recall."""
        values, by_class = self.resampled(test, once(test))
        recalls = defined(test, by_class[:, 0])
        return MetricResult(value=float(values[0]), by_class=recalls, note=without(test, recalls))

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the share and the recalls of each resample."""
        right = test.outputs.argmax(1) == test.labels
        truth = true_classes(test)
        recalls = share(_counted(truth & right[:, None], counts), _counted(truth, counts))
        return Resampled(_counted(right[:, None], counts)[0] / counts.sum(0, dtype=np.float64), recalls)


@dataclass(frozen=True, slots=True)
class F1:
    """F1 over classes: "macro" is the mean of each class's, "micro" that of all decisions together, in [0, 1].

    Multilabel: a class is said where its output is at least its threshold, which `fit` chooses on the selection split
    (0, a probability of one half, before): thresholds_by says how, for the best F1 of that class if not told otherwise.
    Multiclass: the greatest output is said.
    """

    average: Average = "macro"
    thresholds: tuple[float, ...] | None = None
    thresholds_by: Thresholds = field(default=BestF1(), kw_only=True)

    def __post_init__(self) -> None:
        if self.average not in get_args(Average):
            raise RecipeError(
                f"average={self.average!r} is not known; {did_you_mean(str(self.average), get_args(Average))}"
            )
        require_thresholds(self.thresholds_by)

    @property
    def name(self) -> str:
        """The name in tables."""
        chosen = "" if isinstance(self.thresholds_by, BestF1) else f"_{self.thresholds_by.name}"
        return f"{self.average}_f1{chosen}"

    def fit(self, validation: Predictions) -> Self:
        """Return the score with the thresholds that are chosen on this split."""
        if validation.labels.ndim == 1:
            return self
        return replace(self, thresholds=self.thresholds_by.choose(validation))

    def compute(self, test: Predictions) -> MetricResult:
        """Return the mean, each class's own, and which classes had no positives."""
        values, figures = self.resampled(test, once(test))
        by_class = defined(test, figures[:, 0])
        return MetricResult(value=float(values[0]), by_class=by_class, note=without(test, by_class))

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return F1 of each resample; the thresholds stay."""
        hits, said_count, true_count = confusions(test, self.thresholds, counts)
        both = said_count + true_count
        by_class = np.where(true_count > 0, 2 * hits / np.maximum(1, both), np.nan)
        if self.average == "macro":
            return Resampled(mean_of(by_class), by_class)
        return Resampled(2 * hits.sum(0) / np.maximum(1, both.sum(0)), by_class)


def MacroF1(*, thresholds_by: Thresholds | None = None) -> F1:  # noqa: N802  # reads as the class it is a setting of
    """Return F1 as the mean of each class's."""
    return F1("macro", thresholds_by=thresholds_by or BestF1())


def MicroF1(*, thresholds_by: Thresholds | None = None) -> F1:  # noqa: N802  # reads as the class it is a setting of
    """Return F1 of all decisions together."""
    return F1("micro", thresholds_by=thresholds_by or BestF1())


def confusions(
    test: Predictions, thresholds: tuple[float, ...] | None, counts: Counts
) -> tuple[Floats, Floats, Floats]:
    """Return how often each class is rightly said, said, and true in each resample, (classes, resamples) each."""
    truth = true_classes(test)
    if test.labels.ndim == 1:
        said: Bools = np.eye(len(test.classes), dtype=bool)[test.outputs.argmax(1)]
    else:
        said = test.outputs >= np.asarray(thresholds if thresholds is not None else 0.0)
    return _counted(truth & said, counts), _counted(said, counts), _counted(truth, counts)


def share(part: Floats, whole: Floats) -> Floats:
    """Return part / whole, NaN of nothing."""
    shares: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares


def _counted(which: Bools, counts: Counts) -> Floats:
    """Return how many samples each column holds in each resample, (n, columns) -> (columns, resamples).

    Whole numbers below 2**24 are exact in float32, whatever the order of the sum.
    """
    totals: Floats = (which.T.astype(np.float32) @ counts).astype(np.float64)
    return totals
