"""A table of a network's classes, computed from its predictions: positives, thresholds, and metrics with intervals."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from kdkit.metrics.base import (
    Metric,
    Predictions,
    finite_outputs,
    log_softmax,
    mean_over_classes,
    ratio,
    row_blocks,
    true_classes,
)
from kdkit.metrics.bootstrap import BootstrapInterval
from kdkit.metrics.classification import confusion_counts
from kdkit.metrics.paired import SplitPredictions
from kdkit.metrics.ranking import MacroAUPRC, MacroAUROC
from kdkit.metrics.resampling import CountedMetric, Counts, Resampled, unit_counts
from kdkit.metrics.thresholds import BestF1, MinimumSensitivity, Thresholds

_BLOCK = 1 << 20  # how many outputs are processed at a time, in float64

FIGURES = ("precision", "recall", "specificity", "f1", "iou", "auroc", "auprc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """The row of a class. positives: by split, None if unknown. threshold: a logit, None for multiclass.

    figures: the values of the FIGURES that are defined on the test split. intervals: by the same names.
    """

    name: str
    positives: Mapping[str, int | None]
    threshold: float | None
    figures: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetReport:
    """The saved predictions of a network of a finished run.

    train: the number of positives of each class in the training split, None if unknown.
    """

    validation: Predictions
    test: Predictions | None
    train: Mapping[str, int] | None

    @property
    def splits(self) -> SplitPredictions:
        """The predictions for both splits; without a test split, both are those for the validation split."""
        return SplitPredictions(self.validation, self.validation if self.test is None else self.test)


def class_table(
    report: NetReport,
    *,
    thresholds_by: Thresholds | None = None,
    resamples: int = 1000,
    classes: Collection[str] | None = None,
) -> tuple[ClassRow, ...]:
    """Return a row for each class, computed on the test split, or on the validation split if there is no test split.

    A class without positives also has a row, but no figures. With labels per position, there is the intersection over
    union instead of AUROC and AUPRC.
    thresholds_by: chooses thresholds on the validation split; by default, to maximize the F1 of each class. With
    MinimumSensitivity, there is the specificity instead of F1. Intervals have a level of 95 %.
    classes: the names of those with a row; by default all.
    """
    validation, test = report.splits
    columns = [column for column, name in enumerate(test.classes) if classes is None or name in classes]
    has_thresholds = validation.labels.ndim > 1 and not validation.per_position
    if has_thresholds:
        validation, test = _by_class(validation, columns), _by_class(test, columns)
    thresholds = (thresholds_by or BestF1()).choose(validation) if has_thresholds else None
    # F1 says nothing about thresholds that were chosen for a sensitivity, and a table has no space for all.
    decided = ("specificity",) if isinstance(thresholds_by, MinimumSensitivity) else ("f1",)
    names = ("precision", "recall", *(("f1", "iou") if test.per_position else decided))
    metrics: dict[str, Metric] = {name: _ThresholdMetric(name, thresholds) for name in names}
    results = {name: BootstrapInterval(metric, resamples=resamples).compute(test) for name, metric in metrics.items()}
    if not test.per_position:  # these rank logits, but per position only decisions are stored
        ranked = test if has_thresholds else _by_class(test, columns)
        for name, area in (("auroc", MacroAUROC()), ("auprc", MacroAUPRC())):
            results[name] = BootstrapInterval(area, resamples=resamples).compute(ranked)
    positives = positives_of(report)
    return tuple(
        ClassRow(
            name=name,
            positives={split: counts.get(name) for split, counts in positives.items()},
            threshold=None if thresholds is None else thresholds[row],
            figures={figure: result.by_class[name] for figure, result in results.items() if name in result.by_class},
            intervals={
                figure: result.intervals_by_class[name] for figure, result in results.items() if name in result.by_class
            },
        )
        for row, name in enumerate(report.validation.classes[column] for column in columns)
    )


def positives_of(report: NetReport) -> dict[str, Mapping[str, int]]:
    """Return the number of positives of each class by split, without classes for which it is unknown."""
    return {
        "train": report.train or {},
        "validation": _positives(report.validation),
        "test": _positives(report.test) if report.test is not None else {},
    }


@dataclass(frozen=True, slots=True)
class _ThresholdMetric(CountedMetric):
    """Precision, recall, specificity, F1 or intersection over union of each class, at fixed thresholds."""

    name: str
    thresholds: tuple[float, ...] | None

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        hits, predicted, positives = confusion_counts(test, self.thresholds, counts)
        if self.name == "specificity":
            is_known = np.ones(test.outputs.shape, dtype=bool) if test.labels.ndim == 1 else ~np.isnan(test.labels)
            negatives = is_known.T.astype(np.float64) @ counts - positives
            part, whole = negatives - (predicted - hits), negatives
        else:
            part, whole = {
                "precision": (hits, predicted),
                "recall": (hits, positives),
                "f1": (2 * hits, predicted + positives),
                "iou": (hits, predicted + positives - hits),
            }[self.name]
        by_class = np.where(positives > 0, ratio(part, whole), np.nan)  # undefined without positives, like F1
        return Resampled(mean_over_classes(by_class), by_class)


def _by_class(predictions: Predictions, columns: list[int]) -> Predictions:
    """Return predictions for a label by class, of the classes with these columns.

    With one class per sample, the outputs become the logarithm of the softmax, and the labels whether it is this class.
    Raises DataError if labels or outputs do not fit the classes.
    """
    outputs, truth = finite_outputs(predictions), true_classes(predictions)
    classes = tuple(predictions.classes[column] for column in columns)
    if predictions.labels.ndim > 1:
        labels, outputs = predictions.labels[:, columns], outputs[:, columns]
    else:
        labels = truth[:, columns].astype(np.int8)
        blocks = row_blocks(outputs.shape, _BLOCK)
        outputs = np.concatenate([log_softmax(outputs[rows])[:, columns] for rows in blocks])
    return replace(predictions, labels=labels, outputs=outputs, classes=classes)


def _positives(predictions: Predictions) -> dict[str, int]:
    positives = confusion_counts(predictions, None, unit_counts(predictions))[2][:, 0]
    return {name: int(count) for name, count in zip(predictions.classes, positives, strict=True)}
