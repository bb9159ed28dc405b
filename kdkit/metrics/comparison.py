"""Compare two methods over seeds, with a verdict that accounts for other seeds and other test samples."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdkit.errors import DataError, KdkitError, first_line
from kdkit.metrics.base import Metric, is_biased, lower_is_better
from kdkit.metrics.bootstrap import without_interval
from kdkit.metrics.paired import (
    Difference,
    SplitPredictions,
    Verdict,
    paired_bootstrap,
    paired_t_interval,
    require_same_samples,
)

PairsOfRuns = tuple[Sequence[SplitPredictions], Sequence[SplitPredictions]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The difference of a metric between two methods, over runs that are paired by seed, or by seed and fold.

    seeds: the mean difference with Student's t interval over the runs; None for fewer than two runs.
    samples: the mean difference with a paired bootstrap interval over the test samples; None if it is not available.
    note: why one of them is missing, or "".
    includes_samples: whether test samples differ between runs, so that `seeds` includes the choice of test samples.
    """

    seeds: Difference | None
    samples: Difference | None
    note: str = ""
    includes_samples: bool = False

    @property
    def total(self) -> Difference | None:
        """The mean difference with an interval over seeds and samples, or over one of them if the other is missing.

        Student's t interval for the sum of the two variances, with Welch-Satterthwaite degrees of freedom. It contains
        both intervals.
        """
        seeds, samples = self.seeds, self.samples
        if seeds is None or samples is None:
            return seeds or samples
        from scipy.stats import t  # late: scipy.stats takes a second to import

        variances = (seeds.error**2, samples.error**2)
        # The variance over samples is treated as known exactly, with infinitely many degrees of freedom.
        freedom = math.inf if not variances[0] else (seeds.pairs - 1) * (sum(variances) / variances[0]) ** 2
        margin = float(t.ppf((1 + seeds.level) / 2, freedom)) * math.sqrt(sum(variances))
        bounds = [(seeds.value - margin, seeds.value + margin), seeds.interval, samples.interval]
        if not all(math.isfinite(bound) for pair in bounds for bound in pair):
            return replace(seeds, interval=(math.nan, math.nan))
        return replace(seeds, interval=(min(low for low, _ in bounds), max(high for _, high in bounds)))

    def with_overlap(self, overlap: float) -> "Comparison":
        """Return the comparison for runs on folds of one data set, whose training samples overlap.

        overlap: see `paired_t_interval`. The comparison is unchanged if all runs share their test samples.
        """
        seeds = self.seeds
        if seeds is None or not self.includes_samples:
            return self
        factor = math.sqrt(1 + seeds.pairs * overlap)
        margin = (seeds.interval[1] - seeds.value) * factor
        interval = (seeds.value - margin, seeds.value + margin)
        note = f"{self.note}, and is {factor:.2f} times as wide because training samples overlap"
        return replace(self, seeds=replace(seeds, interval=interval, error=seeds.error * factor), note=note)

    @property
    def verdict(self) -> Verdict:
        """Whether the first method is better, or, with a single seed, whether its run is better.

        Not distinguishable if the total interval contains 0, or if it leaves out the choice of the test samples.
        """
        total = self.total
        if total is None or (self.samples is None and not self.includes_samples):
            return "not distinguishable"
        return total.verdict


def compare_over_seeds(
    metric: Metric,
    candidate: Mapping[Any, float],
    baseline: Mapping[Any, float],
    predictions: Callable[[], PairsOfRuns],
    *,
    resamples: int = 1000,
    level: float = 0.95,
) -> Comparison:
    """Compare two methods by their runs with several seeds. A note in the result says what could not be computed.

    candidate, baseline: the values of the metric by seed. predictions: returns the predictions of the candidate's runs
    and the baseline's runs. resamples, level: see `paired_bootstrap`.
    """
    metric = without_interval(metric)  # which says whether it is biased
    seeds, samples, notes, includes_samples = None, None, [], False
    try:
        seeds = paired_t_interval(candidate, baseline, level=level, lower_is_better=lower_is_better(metric))
    except DataError as error:  # a single seed, or a metric that is undefined
        notes.append(first_line(error))
    try:
        runs = predictions()
        includes_samples = not is_biased(metric) and len(runs[0]) == len(runs[1]) > 1 and _have_own_samples(*runs)
        if includes_samples:
            notes.append("test samples differ between runs, so the interval over runs includes their choice")
        else:
            samples = paired_bootstrap(metric, *runs, resamples=resamples, level=level)
    except KdkitError as error:  # for example, samples cannot be paired if an option changes the data
        notes.append(first_line(error))
    except Exception as error:  # a user-defined metric may fail for a resample, for example without positives
        notes.append(f"{metric.name} fails for a resample ({type(error).__name__}: {first_line(error)})")
    return Comparison(seeds=seeds, samples=samples, note="; ".join(notes), includes_samples=includes_samples)


def _have_own_samples(candidates: Sequence[SplitPredictions], baselines: Sequence[SplitPredictions]) -> bool:
    """Return whether test samples differ between seeds. Raises DataError if they differ within a pair."""
    for candidate, baseline in zip(candidates, baselines, strict=True):
        require_same_samples(candidate.test, baseline.test)
    try:
        for candidate in candidates:
            require_same_samples(candidates[0].test, candidate.test)
    except DataError:
        return True
    return False
