"""Whether one net is better than another: paired differences, their intervals, and the verdict these allow."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from kdkit.errors import DataError
from kdkit.metrics.base import Floats, Metric, Predictions, lower_is_better
from kdkit.metrics.bootstrap import Counts, bounds, draw, require_bootstrap, require_level, resample, without_interval

Verdict = Literal["better", "worse", "not distinguishable"]


class SplitPredictions(NamedTuple):
    """What one net said about the selection split, which thresholds are chosen on, and about the test split."""

    validation: Predictions
    test: Predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The figure of one less that of the other, and its interval.

    pairs: how many runs, or samples or groups of samples, it rests on. lower_is_better: of the score.
    """

    value: float
    interval: tuple[float, float]
    level: float
    pairs: int
    lower_is_better: bool = False

    @property
    def verdict(self) -> Verdict:
        """What is known of the one against the other; an interval that holds 0 leaves both signs open."""
        low, high = self.interval
        if not (low > 0 or high < 0):
            return "not distinguishable"
        return "better" if (low > 0) != self.lower_is_better else "worse"


def paired_bootstrap(
    score: Metric,
    one: SplitPredictions | Sequence[SplitPredictions],
    other: SplitPredictions | Sequence[SplitPredictions],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Return how much better one net scores on the samples of one test split, by paired bootstrap.

    one, other: what each said; or what its runs said, in the order that pairs them, of which the mean is compared.
    Each run's thresholds are chosen on its own answers to the selection split. Every resample, of whole groups where
    they are known, is scored for all, and the interval holds the middle `level` of the differences. It tells of other
    samples, not of other seeds: for these see paired_runs.
    Raises DataError where the nets were not asked about the same samples in the same order, or not as many runs of each
    are given.
    """
    require_bootstrap(resamples, level)
    score = without_interval(score)
    pairs = _runs(one, other)
    test = pairs[0][0].test
    for pair in pairs:
        _require_same(pairs[0][0], *pair)
    runs = [_Pair(score, *pair) for pair in pairs]
    differences = [sum(run.resampled(counts) for run in runs) / len(runs) for counts in draw(test, resamples, seed)]
    return Difference(
        value=sum(run.plain for run in runs) / len(runs),
        interval=bounds(np.concatenate(differences), level),
        level=level,
        pairs=len(test) if test.groups is None else len(np.unique(test.groups)),
        lower_is_better=lower_is_better(score),
    )


def paired_t_interval(
    one: Mapping[Hashable, float],
    other: Mapping[Hashable, float],
    *,
    level: float = 0.95,
    lower_is_better: bool = False,
    overlap: float = 0.0,
) -> Difference:
    """Return how much better one way of training scores over seeds and folds, with Student's t interval.

    one, other: figures by run, the key being what pairs them: a seed, or (seed, fold).
    overlap: test samples per training sample, 1/4 for five folds, where runs are folds of one data set: they share most
    of what they learn from, and without the correction of Nadeau & Bengio (2003) the interval is too narrow.
    Raises DataError where the runs are not the same, fewer than two, or without a figure; RecipeError for a level that
    is none.
    """
    if set(one) != set(other):
        odd = sorted(map(str, set(one) ^ set(other)))
        raise DataError(f"runs are compared in pairs, and these stand alone: {', '.join(odd)}; run both ways for each")
    require_level(level)
    differences = np.array([one[run] - other[run] for run in one], dtype=np.float64)
    if len(differences) < 2:
        raise DataError(f"an interval over runs needs 2 pairs or more, better 5; got {len(differences)}")
    if not np.isfinite(differences).all():
        raise DataError("a run without a figure (NaN) cannot be compared; leave its pair out and say so")
    from scipy.stats import t  # scipy.stats takes a second to import

    count = len(differences)
    error = math.sqrt(differences.var(ddof=1) * (1 / count + overlap))
    reach = float(t.ppf((1 + level) / 2, count - 1)) * error
    value = float(differences.mean())
    return Difference(
        value=value,
        interval=(value - reach, value + reach),
        level=level,
        pairs=count,
        lower_is_better=lower_is_better,
    )


def _runs(
    one: SplitPredictions | Sequence[SplitPredictions], other: SplitPredictions | Sequence[SplitPredictions]
) -> list[tuple[SplitPredictions, SplitPredictions]]:
    ours, theirs = ([each] if isinstance(each, SplitPredictions) else list(each) for each in (one, other))
    if len(ours) != len(theirs) or not ours:
        raise DataError(f"runs are compared in pairs, one at least; got {len(ours)} and {len(theirs)}")
    return list(zip(ours, theirs, strict=True))


class _Pair:
    """What two nets scored, each with thresholds from its own selection split."""

    def __init__(self, score: Metric, one: SplitPredictions, other: SplitPredictions) -> None:
        self._scores = [score.fit(each.validation) for each in (one, other)]
        self._tests = [one.test, other.test]
        ours, theirs = (each.compute(test).value for each, test in zip(self._scores, self._tests, strict=True))
        self.plain = ours - theirs

    def resampled(self, counts: Counts) -> Floats:
        """Return the difference in each resample."""
        ours, theirs = (
            resample(each, test, counts).values for each, test in zip(self._scores, self._tests, strict=True)
        )
        return ours - theirs


def _require_same(first: SplitPredictions, *others: SplitPredictions) -> None:
    for said in others:
        for one, other in zip(first, said, strict=True):
            _require_same_samples(one, other)


def _require_same_samples(one: Predictions, other: Predictions) -> None:
    if one.classes != other.classes:
        raise DataError(f"the nets know other classes: {', '.join(one.classes)} and {', '.join(other.classes)}")
    ids = one.ids is None or other.ids is None or np.array_equal(one.ids, other.ids)
    if not (ids and np.array_equal(one.labels, other.labels)):
        raise DataError("the nets were asked about other samples; compare what they say of one split, in one order")
