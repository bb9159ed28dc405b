"""Compute a metric on many resamples of a split at once, from how often each resample contains each sample."""

from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kdkit.errors import RecipeError, describe
from kdkit.metrics.base import (
    Floats,
    Metric,
    MetricResult,
    Predictions,
    WithoutThresholds,
    defined_by_class,
    note_on_missing,
)

Counts = NDArray[np.float32]

_CHUNK = 32_000_000  # the number of counts in memory at a time: 128 MB of float32
_DRAWN = 65_536  # the number of drawn units at a time: many resamples of a small split, or one of a large one
_BLOCK = 64  # the number of resamples at a time, so that their sums stay in the CPU cache


class Resampled(NamedTuple):
    """The metric for each resample, (resamples,), and by class, (classes, resamples); NaN if undefined."""

    values: Floats
    by_class: Floats


@runtime_checkable
class Resampling(Protocol):
    """A metric that supports sample weights, so that a thousand resamples take about a second."""

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the metric for each resample.

        counts: how often each resample contains each sample, (samples, resamples), integers as float32.
        """
        ...


class CountedMetric(WithoutThresholds):
    """Base class of metrics that are `Resampling`. The value on a split counts each sample once.

    missing: why a class may have no value, for a note that names such classes; no note by default.
    """

    __slots__ = ()
    missing: ClassVar[str] = ""

    def compute(self, test: Predictions) -> MetricResult:
        """Return the value, also by class if classes have values. Raises DataError if the predictions do not fit."""
        values, by_class = self.resampled(test, unit_counts(test))
        defined = defined_by_class(test, by_class[:, 0])
        return MetricResult(value=float(values[0]), by_class=defined, note=self._note(test, defined))

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the metric for each resample, see `Resampling`."""
        raise NotImplementedError

    def _note(self, test: Predictions, defined: Container[str]) -> str:
        """Return a note for readers. defined: the classes that have a value."""
        return note_on_missing(test, defined, self.missing) if self.missing else ""


def resample(metric: Metric, test: Predictions, counts: Counts) -> Resampled:
    """Return the metric for each resample. A metric that is not `Resampling` is computed once per resample.

    Raises RecipeError if its `resampled` returns something else than a number for each resample, and for each class.
    """
    if isinstance(metric, Resampling):
        resampled: Any = metric.resampled(test, counts)
        expected = [(counts.shape[1],), (len(test.classes), counts.shape[1])]
        is_pair = isinstance(resampled, tuple) and len(resampled) == 2
        shapes = [np.shape(part) for part in resampled] if is_pair else describe(resampled)
        if shapes != expected:
            raise RecipeError(
                f"resampled of metric {metric.name!r} must return Resampled(values, by_class) of shapes (resamples,) "
                f"and (classes, resamples), here {expected[0]} and {expected[1]}; got {shapes}"
            )
        return Resampled(*resampled)
    # The slow way: a copy of the split with each row repeated as often as it was drawn.
    results = [metric.compute(drawn_samples(test, column)) for column in counts.T.astype(np.int64)]
    by_class = [[result.by_class.get(name, np.nan) for result in results] for name in test.classes]
    return Resampled(np.array([result.value for result in results]), np.array(by_class, dtype=np.float64))


def drawn_samples(test: Predictions, times: NDArray[np.int64]) -> Predictions:
    """Return a split that has each sample as often as it was drawn. times: how often, (samples,).

    A group that was drawn twice becomes two groups, of which the first keeps its number: a metric by group, such as a
    share of patients, would count it once.
    """
    drawn = test.rows(np.repeat(np.arange(len(test)), times))
    if test.groups is None or not len(drawn):
        return drawn
    groups, unit_of_sample = np.unique(test.groups, return_inverse=True)
    copies = np.arange(len(drawn)) - np.repeat(np.cumsum(times) - times, times)  # 0 for the first of each sample
    others = groups[-1] + 1 + np.repeat(unit_of_sample, times) + (copies - 1) * len(groups)
    return replace(drawn, groups=np.where(copies > 0, others, np.repeat(test.groups, times)).astype(np.int64))


def affordable_resamples(metric: Metric, resamples: int, *, level: float) -> int:
    """Return the number of resamples for an interval at a confidence level.

    If the metric has to be computed once per resample, it is a tenth, or as many as leave 2.5 beyond each bound.
    """
    if isinstance(metric, Resampling):
        return resamples
    return min(resamples, max(resamples // 10, round(5 / (1 - level))))


def unit_counts(test: Predictions) -> Counts:
    """Return the counts for the split itself, (samples, 1): each sample once."""
    return np.ones((len(test), 1), dtype=np.float32)


def count_units(test: Predictions) -> int:
    """Return the number of independent units of a split: of its groups, or of its samples if it has none.

    A single unit is drawn in every resample, so an interval needs two.
    """
    return len(test) if test.groups is None else len(np.unique(test.groups))


def draw_counts(test: Predictions, resamples: int, seed: int) -> Iterator[Counts]:
    """Yield how often each sample is drawn in each resample, in chunks of resamples, (samples, resamples of a chunk).

    If the samples have groups, whole groups are drawn. The counts depend only on the seed and the split.
    """
    units, unit_of_sample = len(test), None
    if test.groups is not None:
        groups, unit_of_sample = np.unique(test.groups, return_inverse=True)
        units = len(groups)
    if not units:
        raise RecipeError("an empty split cannot be resampled")
    random = np.random.default_rng(seed)
    # Metrics have several float64 values per class and resample, which matters for large vocabularies.
    chunk = max(1, _CHUNK // max(len(test), 8 * len(test.classes)))
    block = max(1, _DRAWN // units)
    for first in range(0, resamples, chunk):
        counts = np.empty((len(test), min(chunk, resamples - first)), dtype=np.float32)
        for start in range(0, counts.shape[1], block):
            columns = min(block, counts.shape[1] - start)
            # The numbers of one call are those of a call per resample, so the counts do not depend on these sizes.
            drawn = random.integers(0, units, (columns, units)) + units * np.arange(columns)[:, None]
            drawn = np.bincount(drawn.ravel(), minlength=columns * units).reshape(columns, units)
            counts[:, start : start + columns] = (drawn if unit_of_sample is None else drawn[:, unit_of_sample]).T
        yield counts


def count_blocks(counts: Counts) -> Iterator[Counts]:
    """Yield the counts of some resamples at a time: many small sums are faster than a few large ones."""
    for first in range(0, counts.shape[1], _BLOCK):
        yield np.ascontiguousarray(counts[:, first : first + _BLOCK])
