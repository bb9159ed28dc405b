"""How a net does class by class: positives, thresholds, and every figure with its interval, from what it said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from kdkit.metrics.base import Metric, MetricResult, Predictions, defined, mean_of, true_classes
from kdkit.metrics.bootstrap import BootstrapInterval, Counts, Resampled, once
from kdkit.metrics.classification import confusions, share
from kdkit.metrics.ranking import MacroAUPRC, MacroAUROC
from kdkit.metrics.thresholds import BestF1, Thresholds

FIGURES = ("precision", "recall", "f1", "auroc", "auprc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """One class. positives: by split, None where that is not known. threshold: a logit, None where there is none.

    figures: those of FIGURES that are defined on the test split, and intervals of the same names.
    """

    name: str
    positives: Mapping[str, int | None]
    threshold: float | None
    figures: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What a finished run kept of one net: what it said of each split, and the training positives where known."""

    validation: Predictions
    test: Predictions | None
    train: Mapping[str, int] | None


def class_table(
    reported: Reported, *, thresholds_by: Thresholds | None = None, resamples: int = 1000
) -> tuple[ClassRow, ...]:
    """Return a row per class, classes without positives too: what cannot be figured is missing from its figures.

    Thresholds are chosen on the selection split, for each class's best F1 if not told otherwise. Intervals hold 95 %.
    """
    validation, test = reported.validation, reported.test if reported.test is not None else reported.validation
    thresholds = None if validation.labels.ndim == 1 else (thresholds_by or BestF1()).choose(validation)
    metrics: dict[str, Metric] = {name: _Decided(name, thresholds) for name in FIGURES[:3]}
    metrics |= {"auroc": MacroAUROC(), "auprc": MacroAUPRC()}
    compute_metrics = {
        name: BootstrapInterval(score, resamples=resamples).compute(test) for name, score in metrics.items()
    }
    counts = {
        "train": reported.train or {},
        "validation": _positives(validation),
        "test": _positives(reported.test) if reported.test is not None else {},
    }
    return tuple(
        ClassRow(
            name=name,
            positives={split: each.get(name) for split, each in counts.items()},
            threshold=None if thresholds is None else thresholds[column],
            figures={figure: each.by_class[name] for figure, each in compute_metrics.items() if name in each.by_class},
            intervals={
                figure: each.intervals_by_class[name]
                for figure, each in compute_metrics.items()
                if name in each.by_class
            },
        )
        for column, name in enumerate(test.classes)
    )


@dataclass(frozen=True, slots=True)
class _Decided:
    """Precision, recall or F1 of each class, at thresholds that are given."""

    name: str
    thresholds: tuple[float, ...] | None

    def fit(self, validation: Predictions) -> Self:
        return replace(self)

    def compute(self, test: Predictions) -> MetricResult:
        values, by_class = self.resampled(test, once(test))
        return MetricResult(value=float(values[0]), by_class=defined(test, by_class[:, 0]))

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        hits, said, true = confusions(test, self.thresholds, counts)
        part, whole = {"precision": (hits, said), "recall": (hits, true), "f1": (2 * hits, said + true)}[self.name]
        by_class = np.where(true > 0, share(part, whole), np.nan)
        return Resampled(mean_of(by_class), by_class)


def _positives(of: Predictions) -> dict[str, int]:
    counts: Sequence[int] = true_classes(of).sum(0).tolist()
    return dict(zip(of.classes, counts, strict=True))
