"""Scores of the order that outputs put samples in: areas under the ROC and the precision-recall curve."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kdkit.errors import DataError
from kdkit.metrics.base import Bools, Floats, MetricResult, Predictions, defined, mean_of, true_classes, without
from kdkit.metrics.bootstrap import Counts, Resampled, blocks, once


@dataclass(frozen=True, slots=True)
class MacroAUPRC:
    """Average precision, mean over the classes with positives, in [0, 1] (scikit-learn's average_precision_score)."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "macro_auprc"

    def fit(self, validation: Predictions) -> Self:
        """There is nothing to choose: it ranks."""
        return self

    def compute(self, test: Predictions) -> MetricResult:
        """Return the mean, each class's own, and which classes had no positives."""
        return _scored(self.resampled(test, once(test)), test, "no positives")

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the average precision of each resample."""
        return _measured(test, counts, tied=1.0, measure=_average_precision)


@dataclass(frozen=True, slots=True)
class MacroAUROC:
    """Area under the ROC curve, mean over the classes with positives and negatives, in [0, 1]; ties count one half."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "macro_auroc"

    def fit(self, validation: Predictions) -> Self:
        """There is nothing to choose: it ranks."""
        return self

    def compute(self, test: Predictions) -> MetricResult:
        """Return the mean, each class's own, and which classes are undefined."""
        return _scored(self.resampled(test, once(test)), test, "no positives, or no negatives")

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the area of each resample."""
        return _measured(test, counts, tied=0.5, measure=_roc_area)


class _Ranking(NamedTuple):
    """A class at each output that one of its positives has, the greatest first: sparse sums of the samples' counts.

    hits: positives at the output, (outputs, n). between: negatives from the output before on, (outputs + 1, n), those
    at an output by their share. Sums are whole or half numbers below 2**23, so float32 holds them exactly.
    """

    hits: Any
    between: Any


def _measured(test: Predictions, counts: Counts, tied: float, measure: Callable[[Counts, Counts], Floats]) -> Resampled:
    """Return a measure of (hits, negatives between), each (resamples, outputs); tied: what a tie counts as passed."""
    if not np.isfinite(test.outputs).all():
        raise DataError("outputs that are not finite cannot be ranked; did training diverge?")
    truth = true_classes(test)
    rankings = [_ranking(truth[:, column], test.outputs[:, column], tied) for column in range(len(test.classes))]
    by_class = np.concatenate(
        [
            np.stack([measure(_sums(each.hits, some), _sums(each.between, some)) for each in rankings])
            for some in blocks(counts)
        ],
        axis=1,
    )
    return Resampled(mean_of(by_class), by_class)


def _ranking(truth: Bools, outputs: NDArray[Any], tied: float) -> _Ranking:
    """Sort, and find which negatives lie between two outputs of positives, which are mostly few."""
    order = np.argsort(-outputs)
    ranked, positive = outputs[order], truth[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = ranked[1:] != ranked[:-1]
    output = np.cumsum(first) - 1  # which different output each sample has
    at = (np.bincount(output, weights=positive) > 0)[output]  # whether a positive has it too
    place = np.cumsum(first & at) - at  # how many outputs of positives lie above
    late = at & ~positive  # the rest of these counts from the next output on
    samples = np.concatenate([order[~positive], order[late]])
    places = np.concatenate([place[~positive], place[late] + 1])
    shares = np.concatenate([np.where(late, tied, 1.0)[~positive], np.full(late.sum(), 1 - tied)])
    found, size = int((first & at).sum()), len(order)
    return _Ranking(
        hits=_summing(order[positive], place[positive], np.ones(positive.sum()), (found, size)),
        between=_summing(samples, places, shares, (found + 1, size)),
    )


def _summing(samples: NDArray[np.int64], places: NDArray[np.int64], shares: Floats, shape: tuple[int, int]) -> Any:
    """Return the sparse matrix that adds the counts of samples, each times its share, to places."""
    from scipy.sparse import csr_matrix  # scipy.sparse takes a while to import

    return csr_matrix((shares.astype(np.float32), (places, samples)), shape=shape)


def _sums(summing: Any, counts: Counts) -> Counts:
    return np.ascontiguousarray((summing @ counts).T)


def _average_precision(hits: Counts, between: Counts) -> Floats:
    """Mean over the positives of the precision at their output, (resamples,)."""
    found = np.cumsum(hits, axis=1)
    said = found + np.cumsum(between[:, :-1], axis=1)
    weighted = hits * (found.astype(np.float64) / np.maximum(said, 1))
    return _over(weighted.sum(1), hits.sum(1, dtype=np.float64))


def _roc_area(hits: Counts, between: Counts) -> Floats:
    """Share of the pairs of a positive and a negative that are in order, ties one half, (resamples,)."""
    positives, negatives = hits.sum(1, dtype=np.float64), between.sum(1, dtype=np.float64)
    passed = np.cumsum(between[:, :-1], axis=1)
    out_of_order = np.einsum("rk,rk->r", hits, passed, dtype=np.float64)
    return _over(positives * negatives - out_of_order, positives * negatives)


def _over(part: Floats, whole: Floats) -> Floats:
    shares: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares


def _scored(resampled: Resampled, test: Predictions, lacking: str) -> MetricResult:
    by_class = defined(test, resampled.by_class[:, 0])
    return MetricResult(value=float(resampled.values[0]), by_class=by_class, note=without(test, by_class, lacking))
