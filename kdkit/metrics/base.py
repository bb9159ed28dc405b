"""What a score is: thresholds fitted on one split, a figure reported on another, and which figure is better."""

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a net said about a split: ids (n,) or None, labels (n,) or (n, classes), outputs (n, classes) logits.

    groups: (n,), the same number for samples that are not independent, such as those of one patient; None if unknown.
    """

    labels: NDArray[Any]
    outputs: NDArray[Any]
    classes: tuple[str, ...]
    ids: NDArray[np.int64] | None = None
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.outputs)

    def rows(self, rows: NDArray[Any]) -> "Predictions":
        """Return these samples, by index or by a mask."""
        return Predictions(
            labels=self.labels[rows],
            outputs=self.outputs[rows],
            classes=self.classes,
            ids=None if self.ids is None else self.ids[rows],
            groups=None if self.groups is None else self.groups[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """A figure, the same by class where it has classes, and what a reader must know of it.

    interval: (low, high) of the figure, None where none was asked for; intervals_by_class likewise.
    """

    value: float
    by_class: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    interval: tuple[float, float] | None = None
    intervals_by_class: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@runtime_checkable
class Metric(Protocol):
    """A figure of merit; greater is better, unless the score has `lower_is_better = True`.

    `fit` returns one with its thresholds set, and leaves `self` as it was.
    """

    @property
    def name(self) -> str:
        """The name in tables; unique in a recipe."""
        ...

    def fit(self, validation: Predictions) -> Self:
        """Choose what has to be chosen (thresholds) on the selection split."""
        ...

    def compute(self, test: Predictions) -> MetricResult:
        """Report on another split; classes without positives are named in the note."""
        ...


def lower_is_better(score: Metric) -> bool:
    """Whether the score is an error, so that the lowest figure is the best."""
    return bool(getattr(score, "lower_is_better", False))


def better(score: Metric, value: float, than: float) -> bool:
    """Whether one figure of this score is better than another; NaN is worse than any figure."""
    if math.isnan(value) or math.isnan(than):
        return not math.isnan(value)
    return value < than if lower_is_better(score) else value > than


def true_classes(of: Predictions) -> Bools:
    """Return what is true, (n, classes), for classes that exclude each other and for those that do not."""
    if of.labels.ndim == 1:
        hot: Bools = np.eye(len(of.classes), dtype=bool)[of.labels.astype(np.int64)]
        return hot
    truth: Bools = of.labels > 0.5
    return truth


def defined(test: Predictions, figures: NDArray[Any]) -> dict[str, float]:
    """Return the figures by class, (classes,), leaving out those that are NaN: undefined on this split."""
    return {name: float(each) for name, each in zip(test.classes, figures, strict=True) if not math.isnan(each)}


def mean_of(figures: NDArray[Any]) -> Floats:
    """Return the mean over the classes that are defined, (classes, resamples) -> (resamples,); NaN where none is."""
    known = ~np.isnan(figures)
    totals = np.where(known, figures, 0.0).sum(0)
    counts = known.sum(0)
    means: Floats = np.divide(totals, counts, out=np.full(len(totals), np.nan), where=counts > 0)
    return means


def without(test: Predictions, there: Container[str], lacking: str = "no positives") -> str:
    """Return the note that names the classes that are not there, with the reason."""
    left_out = [name for name in test.classes if name not in there]
    return f"{lacking}: {', '.join(left_out)}" if left_out else ""
