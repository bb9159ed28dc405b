"""Compare two networks: paired differences of a metric, their intervals, and a verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from kdkit.errors import DataError
from kdkit.metrics.base import Floats, Metric, Predictions, is_biased, lower_is_better
from kdkit.metrics.bootstrap import percentile_interval, validate_bootstrap, validate_level, without_interval
from kdkit.metrics.resampling import Counts, count_units, draw_counts, resample

Verdict = Literal["better", "worse", "not distinguishable"]


class SplitPredictions(NamedTuple):
    """The predictions of a network for the validation split, which is used to choose thresholds, and the test split."""

    validation: Predictions
    test: Predictions


Runs = SplitPredictions | Sequence[SplitPredictions]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A metric of a candidate minus the metric of a baseline, with an interval.

    pairs: the number of runs, samples or groups of samples behind the difference. lower_is_better: as for the metric.
    error: the standard error of the value; over samples, only the part that all runs share and that does not become
    smaller with more runs.
    """

    value: float
    interval: tuple[float, float]
    level: float
    pairs: int
    lower_is_better: bool = False
    error: float = math.nan

    @property
    def verdict(self) -> Verdict:
        """Whether the candidate is better than the baseline; not distinguishable if the interval contains 0 or NaN."""
        low, high = self.interval
        if not (low > 0 or high < 0):  # True for NaN too
            return "not distinguishable"
        return "better" if (low > 0) != self.lower_is_better else "worse"


def paired_bootstrap(
    metric: Metric, candidate: Runs, baseline: Runs, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Return the difference of a metric between two networks on the same samples, with a paired bootstrap interval.

    candidate, baseline: the predictions of each network, or of several runs of each, in the same order; the mean
    difference is then returned. The thresholds of each run are chosen on its validation split. All runs are scored on
    the same resamples, of whole groups if the samples have groups. The interval contains a share `level` of the
    resampled differences. It reflects the choice of the test samples, not of the seed; for seeds see
    `paired_t_interval`, and for both `compare_over_seeds`. It is NaN if there is a single sample or group.
    Raises DataError if samples, classes or the numbers of runs differ, or if the metric declares `is_biased`, see
    `Metric`. Raises RecipeError for options out of range.
    """
    validate_bootstrap(resamples, level)
    metric = without_interval(metric)  # an interval for each resample would take hours
    if is_biased(metric):
        raise DataError(
            f"differences of {metric.name} have no interval: on a split, its value is too large, and more so for some "
            "nets; compare the nets by another metric, such as Brier"
        )
    candidates, baselines = _as_list(candidate), _as_list(baseline)
    if len(candidates) != len(baselines) or not candidates:
        raise DataError(f"runs are compared in pairs, at least one; got {len(candidates)} and {len(baselines)}")
    reference = candidates[0]
    for run in [*candidates, *baselines]:
        for expected, predictions in zip(reference, run, strict=True):
            require_same_samples(expected, predictions)
    pairs = [_Pair(metric, *pair) for pair in zip(candidates, baselines, strict=True)]
    # (runs, resamples), in chunks. All runs get the same counts.
    chunks = [
        np.stack([pair.resampled(counts) for pair in pairs]) for counts in draw_counts(reference.test, resamples, seed)
    ]
    differences = np.concatenate(chunks, axis=1)
    value = sum(pair.difference for pair in pairs) / len(pairs)
    units = count_units(reference.test)
    if units == 1:  # each resample is the split itself
        differences[:] = np.nan
    return Difference(
        value=value,
        # Resampling changes the metric of both networks alike. In a simulation without a difference, plain percentiles
        # exclude 0 in 3 to 6 of 100 comparisons, and bias-corrected percentiles in up to 12.
        interval=percentile_interval(differences.mean(0), level),
        error=_shared_error(differences),
        level=level,
        pairs=units,
        lower_is_better=lower_is_better(metric),
    )


def paired_t_interval(
    candidate: Mapping[Any, float],
    baseline: Mapping[Any, float],
    *,
    level: float = 0.95,
    lower_is_better: bool = False,
    overlap: float = 0.0,
) -> Difference:
    """Return the mean difference of a metric between two methods over seeds and folds, with Student's t interval.

    candidate, baseline: values by run. Runs are paired by the key, such as a seed or (seed, fold).
    overlap: the number of test samples per training sample, such as 1/4 for five folds, if runs are folds of one data
    set. Their training sets overlap, so the interval would be too narrow without the correction of Nadeau & Bengio
    (2003).
    Raises DataError if the keys differ, if there are fewer than two runs, or if a value is NaN. Raises RecipeError for
    an invalid level.
    """
    for values in (candidate, baseline):
        if not isinstance(values, Mapping):
            raise DataError(
                f"runs are paired by their keys, such as seeds: pass {{seed: value}} for each method; got a "
                f"{type(values).__name__}"
            )
    if set(candidate) != set(baseline):
        unpaired = sorted(map(str, set(candidate) ^ set(baseline)))
        raise DataError(
            f"runs are compared in pairs, but these have no counterpart: {', '.join(unpaired)}; run both methods for "
            "each"
        )
    validate_level(level)
    differences = np.array([candidate[run] - baseline[run] for run in candidate], dtype=np.float64)
    if len(differences) < 2:
        raise DataError(f"an interval over runs needs 2 pairs or more, better 5; got {len(differences)}")
    if not np.isfinite(differences).all():
        raise DataError("a run without a value (NaN) cannot be compared; leave out its pair, and report this")
    from scipy.stats import t  # late: scipy.stats takes a second to import

    count = len(differences)
    # Nadeau & Bengio's corrected variance of the mean: (1 / runs + test / train) times the sample variance.
    error = math.sqrt(differences.var(ddof=1) * (1 / count + overlap))
    margin = float(t.ppf((1 + level) / 2, count - 1)) * error
    value = float(differences.mean())
    return Difference(
        value=value,
        interval=(value - margin, value + margin),
        error=error,
        level=level,
        pairs=count,
        lower_is_better=lower_is_better,
    )


def require_same_samples(expected: Predictions, predictions: Predictions) -> None:
    """Raise DataError unless both are predictions for the same samples and classes."""
    if expected.classes != predictions.classes:
        raise DataError(
            f"the nets have different classes: {', '.join(expected.classes)} and {', '.join(predictions.classes)}"
        )
    same_ids = expected.ids is None or predictions.ids is None or np.array_equal(expected.ids, predictions.ids)
    # Unknown labels are NaN, which does not equal itself.
    if not (same_ids and np.array_equal(expected.labels, predictions.labels, equal_nan=True)):
        raise DataError(
            "the nets have predictions for different samples; compare them on the same split, in the same order; if an "
            "option of the recipe selects the samples, such as a fold, compare means over it: --average-over OPTION"
        )


class _Pair:
    """A metric of two runs, each with thresholds from its validation split."""

    def __init__(self, metric: Metric, candidate: SplitPredictions, baseline: SplitPredictions) -> None:
        # Each run has its own thresholds, because the outputs of two networks may have different scales.
        self._metrics = [metric.fit(run.validation) for run in (candidate, baseline)]
        self._tests = [candidate.test, baseline.test]
        left, right = (fitted.compute(test).value for fitted, test in zip(self._metrics, self._tests, strict=True))
        self.difference = left - right

    def resampled(self, counts: Counts) -> Floats:
        """Return the difference for each resample, (resamples,)."""
        left, right = (
            resample(fitted, test, counts).values for fitted, test in zip(self._metrics, self._tests, strict=True)
        )
        return left - right


def _as_list(runs: Runs) -> list[SplitPredictions]:
    """Return the predictions of one run or several. Raises DataError for anything else, such as outputs."""
    listed: list[Any] = [*runs] if isinstance(runs, Sequence) and not isinstance(runs, SplitPredictions) else [runs]
    for run in listed:
        if not isinstance(run, SplitPredictions):
            raise DataError(
                "the nets are compared by SplitPredictions(validation, test) of each, or by a list of them; got a "
                f"{type(run).__name__}"
            )
    return listed


def _shared_error(differences: Floats) -> float:
    """Return the part of the sampling error that all runs share, from differences (runs, resamples).

    A resample also affects each run differently, because runs make different errors. The spread of the runs already
    includes that part.
    """
    runs = len(differences)
    defined = differences[:, ~np.isnan(differences).any(0)]
    if defined.shape[1] < 2:
        return math.nan
    of_mean, of_single = defined.mean(0).var(ddof=1), defined.var(1, ddof=1).mean()
    # of_single = shared + single, and of_mean = shared + single / runs
    single = (of_single - of_mean) * runs / (runs - 1) if runs > 1 else 0.0
    return math.sqrt(max(0.0, of_mean - max(0.0, single) / runs))
