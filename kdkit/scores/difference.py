"""Whether one net is better than another: paired differences, their intervals, and the verdict these allow."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from kdkit.errors import DataError
from kdkit.scores.interval import bare
from kdkit.scores.resampling import bounds, draw, require_bootstrap, require_level, resample
from kdkit.scores.score import Predictions, Score, lower_is_better

Verdict = Literal["better", "worse", "not distinguishable"]


class Said(NamedTuple):
    """What one net said about the selection split, which thresholds are chosen on, and about the test split."""

    select: Predictions
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


def paired(
    score: Score, one: Said, other: Said, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Return how much better one net scores on the samples of one test split, by paired bootstrap.

    Each net's thresholds are chosen on its own answers to the selection split. Every resample, of whole groups where
    they are known, is scored for both nets, and the interval holds the middle `level` of the differences. It tells of
    other samples, not of other seeds: for these see paired_runs.
    Raises DataError where the nets were not asked about the same samples in the same order.
    """
    require_bootstrap(resamples, level)
    score = bare(score)
    for first, second in zip(one, other, strict=True):
        _require_same(first, second)
    scores = score.fit(one.select), score.fit(other.select)
    plain = [each.score(said.test).value for each, said in zip(scores, (one, other), strict=True)]
    test = one.test
    differences = np.concatenate(
        [
            resample(scores[0], test, counts).values - resample(scores[1], other.test, counts).values
            for counts in draw(test, resamples, seed)
        ]
    )
    return Difference(
        value=plain[0] - plain[1],
        interval=bounds(differences, level),
        level=level,
        pairs=len(test) if test.groups is None else len(np.unique(test.groups)),
        lower_is_better=lower_is_better(score),
    )


def paired_runs(
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


def _require_same(one: Predictions, other: Predictions) -> None:
    if one.classes != other.classes:
        raise DataError(f"the nets know other classes: {', '.join(one.classes)} and {', '.join(other.classes)}")
    ids = one.ids is None or other.ids is None or np.array_equal(one.ids, other.ids)
    if not (ids and np.array_equal(one.labels, other.labels)):
        raise DataError("the nets were asked about other samples; compare what they say of one split, in one order")
