"""Metrics of the ranking of samples: areas under the ROC curve and the precision-recall curve."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdkit.metrics.base import (
    Bools,
    Floats,
    Predictions,
    finite_outputs,
    known_rows,
    log_softmax,
    mean_over_classes,
    negated,
    ratio,
    true_classes,
)
from kdkit.metrics.resampling import CountedMetric, Counts, Resampled, count_blocks


@dataclass(frozen=True, slots=True)
class MacroAUPRC(CountedMetric):
    """Average precision, averaged over the classes with positives, in [0, 1].

    Defined as in scikit-learn's average_precision_score. For one class per sample, it is computed from the softmax.
    """

    name = "macro_auprc"
    missing: ClassVar[str] = "no positives"
    accepts_unknown: ClassVar[bool] = True

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the average precision for each resample."""
        return _resampled(test, counts, tie_share=1.0, area=_average_precision)


@dataclass(frozen=True, slots=True)
class MacroAUROC(CountedMetric):
    """Area under the ROC curve, averaged over the classes with positives and negatives, in [0, 1].

    A tie between a positive and a negative counts one half. For one class per sample, it is computed from the softmax,
    for each class against the rest.
    """

    name = "macro_auroc"
    missing: ClassVar[str] = "no positives, or no negatives"
    accepts_unknown: ClassVar[bool] = True

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the area for each resample."""
        return _resampled(test, counts, tie_share=0.5, area=_roc_area)


def _resampled(
    test: Predictions, counts: Counts, tie_share: float, area: Callable[[Counts, Counts], Floats]
) -> Resampled:
    """Return the area for each resample. tie_share: how much a negative counts if it ties with a positive."""
    outputs, truth = finite_outputs(test), true_classes(test)
    # With one class per sample, logits can be compared only within a sample: adding a number to all of them does not
    # change the probabilities, and must not change the ranking of the samples.
    scores = log_softmax(outputs) if test.labels.ndim == 1 else outputs
    # A class without positives has no area. Of many classes, most are such.
    rankings = {
        column: _ranking(truth[:, column], scores[:, column], rows, tie_share)
        for column, rows in enumerate(known_rows(test))
        if truth[rows, column].any()
    }
    # The samples are sorted once, and the counts of resamples are summed in this order, instead of sorting each
    # resample. The sums are multiples of one half below 2**23, which float32 represents exactly.
    blocks = []
    for block in count_blocks(counts):
        areas = np.full((len(test.classes), block.shape[1]), np.nan)
        for column, sum_matrices in rankings.items():
            # (resamples, levels), because the areas sum along rows
            areas[column] = area(*(np.ascontiguousarray((sum_matrix @ block).T) for sum_matrix in sum_matrices))
        blocks.append(areas)
    by_class = np.concatenate(blocks, axis=1)
    return Resampled(mean_over_classes(by_class), by_class)


def _ranking(truth: Bools, outputs: NDArray[Any], rows: NDArray[np.int64], tie_share: float) -> tuple[Any, Any]:
    """Sort the samples in these rows by output, and return two sparse matrices that sum the counts of a resample.

    A level is an output of at least one positive; level 0 is the largest.
    hits: (levels, samples) -> the positives at each level.
    between: (levels + 1, samples) -> the negatives below the previous level, but not below this one. A share
    `tie_share` of the negatives exactly at a level counts for this level, and the rest for the next one.
    The labels of the samples in other rows are unknown, so they are not counted.
    """
    descending, is_positive = negated(outputs[rows]), truth[rows]
    positives, negatives = rows[is_positive], rows[~is_positive]
    # With many classes, each has few positives, so sorting only their outputs is faster than sorting all.
    levels, level_of_positives = np.unique(descending[is_positive], return_inverse=True)
    level = np.searchsorted(levels, descending[~is_positive])  # the number of levels above each negative
    # Negatives that tie with a positive also count for the next level.
    tied = np.append(levels, np.nan)[level] == descending[~is_positive]
    shares = np.concatenate([np.where(tied, tie_share, 1.0), np.full(tied.sum(), 1 - tie_share)])
    hits = _sum_matrix(positives, level_of_positives, np.ones(len(positives)), (len(levels), len(truth)))
    samples, at_levels = np.concatenate([negatives, negatives[tied]]), np.concatenate([level, level[tied] + 1])
    between = _sum_matrix(samples, at_levels, shares, (len(levels) + 1, len(truth)))
    return hits, between


def _sum_matrix(samples: NDArray[np.int64], levels: NDArray[np.int64], shares: Floats, shape: tuple[int, int]) -> Any:
    """Return the sparse matrix that adds the count of each sample, times its share, to its level."""
    from scipy.sparse import csr_matrix  # late: scipy.sparse takes a while to import

    order = np.argsort(levels.astype(np.min_scalar_type(shape[0])), kind="stable")  # small integers use a radix sort
    starts = np.concatenate([[0], np.cumsum(np.bincount(levels, minlength=shape[0]))])
    return csr_matrix((shares[order].astype(np.float32), samples[order], starts), shape=shape)


def _average_precision(hits: Counts, between: Counts) -> Floats:
    """Return the mean over positives of the precision at their output, (resamples,)."""
    true_positives = np.cumsum(hits, axis=1)
    predicted = true_positives + np.cumsum(between[:, :-1], axis=1)
    weighted = hits * (true_positives.astype(np.float64) / np.maximum(predicted, 1))
    return ratio(weighted.sum(1), hits.sum(1, dtype=np.float64))


def _roc_area(hits: Counts, between: Counts) -> Floats:
    """Return the share of (positive, negative) pairs in the right order, (resamples,)."""
    positives, negatives = hits.sum(1, dtype=np.float64), between.sum(1, dtype=np.float64)
    negatives_above = np.cumsum(between[:, :-1], axis=1)
    wrong_pairs = np.einsum("rk,rk->r", hits, negatives_above, dtype=np.float64)
    return ratio(positives * negatives - wrong_pairs, positives * negatives)
