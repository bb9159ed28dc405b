"""Bootstrap intervals of metrics."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kdkit.errors import RecipeError
from kdkit.metrics.base import Floats, Metric, MetricResult, Predictions, lower_is_better

Counts = NDArray[np.float32]

_HELD = 32_000_000  # counts held at a time: 128 MB
_BLOCK = 64  # resamples whose sums stay in a processor's cache


class Resampled(NamedTuple):
    """The figure of each resample, (resamples,), and by class, (classes, resamples); NaN where undefined."""

    values: Floats
    by_class: Floats


@runtime_checkable
class Resampling(Protocol):
    """A score that can weigh samples, so that a thousand resamples take a second."""

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the figures when each sample stands in the split as often as it was drawn.

        counts: (n, resamples), whole numbers as float32.
        """
        ...


def once(test: Predictions) -> Counts:
    """Return the counts of the split as it is: every sample once, (n, 1)."""
    return np.ones((len(test), 1), dtype=np.float32)


def resample(score: Metric, test: Predictions, counts: Counts) -> Resampled:
    """Return the score of each resample; a score that is not `Resampling` is asked once for each."""
    if isinstance(score, Resampling):
        return score.resampled(test, counts)
    compute_metrics = [
        score.compute(test.rows(np.repeat(np.arange(len(test)), column))) for column in counts.T.astype(np.int64)
    ]
    by_class = [[each.by_class.get(name, np.nan) for each in compute_metrics] for name in test.classes]
    return Resampled(np.array([each.value for each in compute_metrics]), np.array(by_class, dtype=np.float64))


def draw(test: Predictions, resamples: int, seed: int) -> Iterator[Counts]:
    """Yield how often each sample is drawn in each resample, (n, some of the resamples), as many draws as there are.

    Where the groups of samples are known, whole groups are drawn. The counts depend on the seed and the split alone.
    """
    units, unit = len(test), None
    if test.groups is not None:
        known, unit = np.unique(test.groups, return_inverse=True)
        units = len(known)
    if not units:
        raise RecipeError("an empty split cannot be resampled")
    random = np.random.default_rng(seed)
    held = max(1, _HELD // len(test))
    for first in range(0, resamples, held):
        counts = np.empty((len(test), min(held, resamples - first)), dtype=np.float32)
        for column in range(counts.shape[1]):
            drawn = np.bincount(random.integers(0, units, units), minlength=units)
            counts[:, column] = drawn if unit is None else drawn[unit]
        yield counts


def blocks(counts: Counts) -> Iterator[Counts]:
    """Yield the counts of a few resamples at a time, (n, some): many small sums are faster than few great ones."""
    for first in range(0, counts.shape[1], _BLOCK):
        yield np.ascontiguousarray(counts[:, first : first + _BLOCK])


def bounds(figures: Floats, level: float) -> tuple[float, float]:
    """Return the percentile interval of resampled figures; those that are undefined are left out."""
    known = figures[~np.isnan(figures)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def require_bootstrap(resamples: int, level: float) -> None:
    """Raise RecipeError where no interval can be made of these."""
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 2:
        raise RecipeError(f"resamples is a whole number of 2 or more, such as 1000; got {resamples!r}")
    require_level(level)


def require_level(level: float) -> None:
    """Raise RecipeError where this is no share of figures that an interval can hold."""
    if not 0 < level < 1:
        raise RecipeError(f"level lies between 0 and 1, such as 0.95; got {level!r}")


@dataclass(frozen=True, slots=True)
class BootstrapInterval:
    """The same score, and a bootstrap interval of it: Interval(MacroAUPRC()).

    The percentile method (Efron & Tibshirani 1993, chapter 13): samples of the split are drawn anew with replacement,
    whole patients where Predictions has groups. Thresholds are not drawn anew, and nothing is trained again: the
    interval tells of the split that was reported on, not of other seeds.
    level: the share of resamples within. seed: of the draws, the same for every net, so that nets are compared alike.
    """

    of: Metric
    _: KW_ONLY
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.of, type) or not isinstance(self.of, Metric):
            raise RecipeError(f"Interval takes a score, such as Interval(MacroAUPRC()); got {self.of!r}")
        if isinstance(self.of, BootstrapInterval):
            raise RecipeError("an interval has no interval of its own; give Interval the score itself")
        require_bootstrap(self.resamples, self.level)

    @property
    def name(self) -> str:
        """The name of the score."""
        return self.of.name

    @property
    def lower_is_better(self) -> bool:
        """As the score has it."""
        return lower_is_better(self.of)

    def fit(self, validation: Predictions) -> Self:
        """Choose what the score has to choose."""
        return replace(self, of=self.of.fit(validation))

    def compute(self, test: Predictions) -> MetricResult:
        """Return what the score says, with intervals; a resample in which it is undefined is left out."""
        plain = self.of.compute(test)
        drawn = [resample(self.of, test, counts) for counts in draw(test, self.resamples, self.seed)]
        values = np.concatenate([each.values for each in drawn])
        figures = np.concatenate([each.by_class for each in drawn], axis=1)
        by_class = {
            name: bounds(row, self.level)
            for name, row in zip(test.classes, figures, strict=True)
            if name in plain.by_class
        }
        units = "samples" if test.groups is None else "groups (patients)"
        notes = [plain.note, f"intervals: {self.level:.0%}, percentiles of {self.resamples} resamples of {units}"]
        return replace(
            plain,
            interval=bounds(values, self.level),
            intervals_by_class=by_class,
            note="; ".join(filter(None, notes)),
        )


def without_interval(score: Metric) -> Metric:
    """Return the score without its interval, which takes a thousand times as long."""
    return score.of if isinstance(score, BootstrapInterval) else score
