"""Bootstrap intervals of metrics."""

import math
from dataclasses import KW_ONLY, dataclass, replace
from statistics import NormalDist
from typing import Self

import numpy as np

from kdkit.errors import RecipeError, describe
from kdkit.metrics.base import Floats, Metric, MetricResult, Predictions, is_biased, lower_is_better
from kdkit.metrics.resampling import count_units, draw_counts, resample
from kdkit.utils.validation import validate_count

_LARGEST_BIAS = 1.0  # in standard deviations: at most 84 % of the resamples are on one side of the value


@dataclass(frozen=True, slots=True)
class BootstrapInterval:
    """A metric with a bootstrap interval: BootstrapInterval(MacroAUPRC()).

    Bias-corrected percentiles (Efron & Tibshirani 1993, section 14.3, without acceleration). Samples of the split are
    drawn with replacement, or whole groups, such as patients, if the predictions have groups. Thresholds are not fitted
    again and nothing is trained again, so the interval reflects the choice of the test samples, not of the seed. For a
    metric with `is_biased`, see `Metric`, and if almost all resamples have a higher value than the split, or a lower
    one, it is the interval of the values on other splits of the same size.
    metric: the metric without an interval. resamples: the number of resamples. level: the share of the resamples inside
    the interval. seed: the seed of the draws, which is the same for all networks, so that they are compared on the same
    resamples.
    Raises RecipeError for options out of range.
    """

    metric: Metric
    _: KW_ONLY
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        # A class also has name, fit and compute, so isinstance would accept the class itself.
        if isinstance(self.metric, type) or not isinstance(self.metric, Metric):
            example = "BootstrapInterval(MacroAUPRC())"
            raise RecipeError(f"BootstrapInterval takes a metric, such as {example}; got {describe(self.metric)}")
        if isinstance(self.metric, BootstrapInterval):
            raise RecipeError("BootstrapInterval takes a metric without an interval; pass the metric inside it")
        validate_bootstrap(self.resamples, self.level)

    @property
    def name(self) -> str:
        """The name of the metric."""
        return self.metric.name

    @property
    def lower_is_better(self) -> bool:
        """Whether lower values of the metric are better."""
        return lower_is_better(self.metric)

    def fit(self, validation: Predictions) -> Self:
        """Return the interval of the metric fitted on the validation split."""
        return replace(self, metric=self.metric.fit(validation))

    def compute(self, test: Predictions) -> MetricResult:
        """Return the result of the metric with intervals. Resamples for which it is undefined are left out."""
        result = self.metric.compute(test)
        # Only classes with a value get an interval: a split may contain a few thousand of 128,000 tokens.
        has_value = np.array([name in result.by_class for name in test.classes], dtype=bool)
        names = [name for name in test.classes if name in result.by_class]
        units = "samples" if test.groups is None else "groups (patients)"
        if count_units(test) < 2:  # each resample is the split itself
            nan = (float("nan"), float("nan"))
            note = "; ".join(filter(None, [result.note, f"no intervals: they need two {units} or more"]))
            return replace(result, interval=nan, intervals_by_class=dict.fromkeys(names, nan), note=note)
        values, by_class = [], []
        for counts in draw_counts(test, self.resamples, self.seed):
            chunk = resample(self.metric, test, counts)
            values.append(chunk.values)
            by_class.append(chunk.by_class[has_value])
        intervals = {
            name: self._interval(row, result.by_class[name])
            for name, row in zip(names, np.concatenate(by_class, axis=1), strict=True)
        }
        method = "spread of the values of" if is_biased(self.metric) else "bias-corrected percentiles of"
        notes = [result.note, f"intervals: {self.level:.0%}, {method} {self.resamples} resamples of {units}"]
        return replace(
            result,
            interval=self._interval(np.concatenate(values), result.value),
            intervals_by_class=intervals,
            note="; ".join(filter(None, notes)),
        )

    def _interval(self, values: Floats, value: float) -> tuple[float, float]:
        interval = spread_interval if is_biased(self.metric) else bootstrap_interval
        return interval(values, value, self.level)


def without_interval(metric: Metric) -> Metric:
    """Return the metric without its interval, which takes about a thousand times as long to compute."""
    return metric.metric if isinstance(metric, BootstrapInterval) else metric


def bootstrap_interval(values: Floats, value: float, level: float) -> tuple[float, float]:
    """Return the bias-corrected percentile interval of a value. Resampled values that are NaN are left out.

    With rare positives, plain percentiles of average precision miss the population value four times as often as they
    should: a sample that is drawn twice ranks next to itself, so that resamples have higher values than the split. If
    almost all do, as for the mean average precision of many classes, their spread around the value is the interval.
    """
    defined = values[~np.isnan(values)]
    if not len(defined) or np.isnan(value):
        return float("nan"), float("nan")
    normal = NormalDist()
    # The share of resamples below the value. Ties, which an accuracy may have, count half.
    below = float((defined < value).mean() + (defined <= value).mean()) / 2
    bias = normal.inv_cdf(min(max(below, 0.5 / len(defined)), 1 - 0.5 / len(defined)))
    if abs(bias) > _LARGEST_BIAS:  # the corrected percentiles would all be at one end of the resamples
        return spread_interval(values, value, level)
    shares = [normal.cdf(2 * bias + normal.inv_cdf(share)) for share in ((1 - level) / 2, (1 + level) / 2)]
    low, high = np.quantile(defined, shares)
    # The interval contains the value, even if all resamples are on one side of it.
    return min(float(low), value), max(float(high), value)


def percentile_interval(values: Floats, level: float) -> tuple[float, float]:
    """Return the central interval with a share `level` of the resampled values. NaN values are left out."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def spread_interval(values: Floats, value: float, level: float) -> tuple[float, float]:
    """Return the percentile interval, shifted so that the median of the resamples is the value.

    If no resample is negative, the interval is not either.
    """
    defined = values[~np.isnan(values)]
    if not len(defined) or np.isnan(value):
        return float("nan"), float("nan")
    low, middle, high = np.quantile(defined, [(1 - level) / 2, 0.5, (1 + level) / 2])
    least = 0.0 if defined.min() >= 0 else -math.inf
    return max(least, float(value + low - middle)), float(value + high - middle)


def validate_bootstrap(resamples: int, level: float) -> None:
    """Raise RecipeError unless there are at least two resamples and the level is valid."""
    validate_count("resamples", resamples, least=2)
    validate_level(level)


def validate_level(level: float) -> None:
    """Raise RecipeError unless the level is between 0 and 1."""
    if not 0 < level < 1:
        raise RecipeError(f"level must be between 0 and 1, such as 0.95; got {level!r}")
