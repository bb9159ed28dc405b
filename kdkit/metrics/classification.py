"""Metrics that compare predicted classes with true classes."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from kdkit.errors import DataError
from kdkit.metrics.base import (
    Bools,
    Floats,
    Predictions,
    class_indices,
    mean_over_classes,
    one_hot,
    ratio,
    require_class_outputs,
    row_blocks,
    true_classes,
    unknown_labels,
)
from kdkit.metrics.resampling import CountedMetric, Counts, Resampled
from kdkit.metrics.thresholds import BestF1, FixedThresholds, Thresholds, thresholds_array, validate_thresholds
from kdkit.utils.validation import validate_choice

Average = Literal["macro", "micro"]

_FEW_CLASSES = 64  # up to so many, a product of matrices is faster than counting by class
_BLOCK = 2**22  # the number of counts of positions in memory at a time: 32 MB of float64


@dataclass(frozen=True, slots=True)
class Accuracy(CountedMetric):
    """The share of samples whose largest output is the one of their class: multiclass, in [0, 1].

    For labels per position, it is the share of all positions with a label, the pixel accuracy.
    The values by class are recalls.
    """

    name = "accuracy"
    missing: ClassVar[str] = "no positives"
    accepts_positions: ClassVar[bool] = True

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the accuracy and the recalls for each resample."""
        if not test.per_position and test.labels.ndim != 1:
            raise DataError(
                f"Accuracy takes one class per sample, labels (samples,); got {test.labels.shape}; use MacroF1 or "
                "MicroF1 for several labels per sample, or MAE for numbers"
            )
        hits, _, positives = confusion_counts(test, None, counts)
        return Resampled(ratio(hits.sum(0), positives.sum(0)), ratio(hits, positives))


@dataclass(frozen=True, slots=True)
class F1(CountedMetric):
    """F1 score, in [0, 1]: "macro" is the mean over classes, "micro" pools the decisions of all classes.

    Multilabel: a class is predicted if its logit is at least its threshold. `fit` chooses the thresholds on the
    validation split; before, they are 0, a probability of one half. Multiclass: the class with the largest output is
    predicted. For labels per position, every position with a label is a decision, with threshold 0 if multilabel, so
    the F1 of a class is its Dice coefficient.
    thresholds_by: how thresholds are chosen; by default, to maximize the F1 of each class. thresholds: those that `fit`
    chose; pass `thresholds_by=FixedThresholds(...)` for your own.
    """

    missing: ClassVar[str] = "no positives"
    accepts_unknown: ClassVar[bool] = True
    accepts_positions: ClassVar[bool] = True
    average: Average = "macro"
    thresholds: tuple[float, ...] | None = None
    thresholds_by: Thresholds = field(default=BestF1(), kw_only=True)

    def __post_init__(self) -> None:
        validate_choice("average", self.average, Average)
        validate_thresholds(self.thresholds_by)

    @property
    def name(self) -> str:
        """The name in tables."""
        chosen_by = "" if isinstance(self.thresholds_by, BestF1) else f"_{self.thresholds_by.name}"
        return f"{self.average}_f1{chosen_by}"

    def fit(self, validation: Predictions) -> Self:
        """Return the metric with thresholds chosen on the validation split. Multiclass and positions need none.

        Raises DataError for labels by class and position if `thresholds_by` is a rule that is not the default.
        """
        if validation.per_position:
            is_default = self.thresholds_by in (BestF1(), FixedThresholds())
            if validation.outputs.dtype == np.bool_ and not is_default:
                raise DataError(
                    f"{self.name} chooses thresholds of logits, but of labels per position only decisions at logit 0 "
                    "are kept; leave out thresholds_by, or write a metric with reduce_positions, which gets the logits"
                )
            return self
        if validation.labels.ndim == 1:
            return self
        return replace(self, thresholds=self.thresholds_by.choose(validation))

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return F1 for each resample, at the same thresholds."""
        hits, predicted, positives = confusion_counts(test, self.thresholds, counts)
        total = predicted + positives
        # F1 = 2 TP / (2 TP + FP + FN), undefined for a class without positives.
        by_class = np.where(positives > 0, 2 * hits / np.maximum(1, total), np.nan)
        if self.average == "macro":
            return Resampled(mean_over_classes(by_class), by_class)
        # Micro: false positives of classes without positives count.
        return Resampled(2 * hits.sum(0) / np.maximum(1, total.sum(0)), by_class)


def MacroF1(*, thresholds_by: Thresholds | None = None) -> F1:  # noqa: N802  # a preset of the class F1
    """Return F1 averaged over classes."""
    return F1("macro", thresholds_by=thresholds_by or BestF1())


def MicroF1(*, thresholds_by: Thresholds | None = None) -> F1:  # noqa: N802  # a preset of the class F1
    """Return F1 over the pooled decisions of all classes."""
    return F1("micro", thresholds_by=thresholds_by or BestF1())


@dataclass(frozen=True, slots=True)
class MeanIoU(CountedMetric):
    """Intersection over union, averaged over classes (mIoU, the Jaccard index), in [0, 1].

    The intersection and union of a class are counted over all positions of all samples. A class that is neither a label
    nor predicted has no value; a class that is only predicted has 0. Multilabel: a class is predicted if its logit is
    at least 0.

    Source: Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) Challenge", IJCV 88, sec. 4.3
    """

    name = "mean_iou"
    missing: ClassVar[str] = "no labels or predictions"
    accepts_positions: ClassVar[bool] = True
    accepts_unknown: ClassVar[bool] = True

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the metric for each resample."""
        hits, predicted, positives = confusion_counts(test, None, counts)
        by_class = ratio(hits, predicted + positives - hits)
        return Resampled(mean_over_classes(by_class), by_class)


def confusion_counts(
    test: Predictions, thresholds: tuple[float, ...] | None, counts: Counts
) -> tuple[Floats, Floats, Floats]:
    """Return the true positives, predicted positives and positives in each resample, each (classes, resamples)."""
    require_class_outputs(test)
    if test.per_position:
        totals = np.zeros((3, len(test.classes), counts.shape[1]))
        for rows, in_block in _position_counts(test):
            # Counts of positions may exceed 2**24, above which float32 is not exact.
            totals += in_block.transpose(0, 2, 1) @ counts[rows].astype(np.float64)
        return totals[0], totals[1], totals[2]
    count = len(test.classes)
    if test.labels.ndim == 1 and count > _FEW_CLASSES:
        labels, classes = class_indices(test), test.outputs.argmax(1)
        is_right = labels == classes
        hits = _counted_classes(labels[is_right], counts[is_right], count)
        return hits, _counted_classes(classes, counts, count), _counted_classes(labels, counts, count)
    truth = true_classes(test)
    if test.labels.ndim == 1:
        predicted = one_hot(test.outputs.argmax(1), count)
    else:
        predicted = test.outputs >= thresholds_array(thresholds, test)
        is_unknown = unknown_labels(test)
        if is_unknown is not None:  # neither a true nor a false positive
            predicted = predicted & ~is_unknown
    return _counted(truth & predicted, counts), _counted(predicted, counts), _counted(truth, counts)


def _counted(mask: Bools, counts: Counts) -> Floats:
    """Return how many samples each column selects in each resample, (samples, columns) -> (columns, resamples)."""
    totals: Floats = np.zeros((mask.shape[1], counts.shape[1]))
    for rows in row_blocks(mask.shape, _BLOCK):
        # Integers below 2**24 are exact in float32, so the result does not depend on the order of summation.
        totals += mask[rows].T.astype(np.float32) @ counts[rows]
    return totals


def _counted_classes(classes: NDArray[np.int64], counts: Counts, number: int) -> Floats:
    """Return how many samples each class has in each resample, (samples,) -> (classes, resamples)."""
    resamples = np.ascontiguousarray(counts.T)
    totals: Floats = np.stack([np.bincount(classes, resample, number) for resample in resamples], axis=1)
    return totals


def _position_counts(test: Predictions) -> Iterator[tuple[slice, Floats]]:
    """Yield blocks of samples with their true positives, predicted positives and positives, (3, samples, classes).

    Blocks save memory for large maps and vocabularies.
    """
    # Decisions by class, (samples, classes, *positions), are compared in whole blocks, others sample by sample.
    has_columns = test.outputs.dtype == np.bool_
    shape = test.outputs.shape if has_columns else (len(test), len(test.classes))
    for rows in row_blocks(shape, _BLOCK):
        labels, outputs = test.labels[rows], test.outputs[rows]
        if has_columns:
            predicted = outputs & (labels >= 0)  # without a label, neither a true nor a false positive
            masks = np.stack([predicted & (labels == 1), predicted, labels == 1])
            yield rows, masks.sum(tuple(range(3, masks.ndim)), dtype=np.float64)
            continue
        totals = np.zeros((3, len(labels), len(test.classes)))
        for index, (truth, predicted) in enumerate(zip(labels, outputs, strict=True)):
            has_label = truth >= 0
            truth, predicted = truth[has_label], predicted[has_label]
            for total, classes in zip(totals, (truth[truth == predicted], predicted, truth), strict=True):
                total[index] = np.bincount(classes, minlength=len(test.classes))
        yield rows, totals
