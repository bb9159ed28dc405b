"""Compare the metrics of students with those of their baselines on the same samples."""

import warnings
from collections.abc import Iterator, Mapping, Sequence

from kdkit.errors import first_line
from kdkit.metrics.base import Metric, is_biased
from kdkit.metrics.bootstrap import without_interval
from kdkit.metrics.paired import Difference, SplitPredictions, paired_bootstrap
from kdkit.metrics.resampling import affordable_resamples
from kdkit.plugins.events import BaselineDifference
from kdkit.recipe.baseline import baselines_of
from kdkit.recipe.recipe import Stage


def baseline_differences(
    metrics: Sequence[Metric], stages: Sequence[Stage], predictions: Mapping[str, SplitPredictions]
) -> Iterator[BaselineDifference]:
    """Yield the difference of each metric between each student and its baseline, the monitored metric first.

    Metrics that declare `is_biased` are left out. A difference without an interval is left out with a warning.
    predictions: of students with a baseline, and of their baselines, by name.
    """
    monitors = {net.name: stage.training.monitor for stage in stages for net in stage.objectives}
    for student, baseline in baselines_of(stages).items():
        pair = predictions[student], predictions[baseline]
        compared = [metric for metric in metrics if not is_biased(without_interval(metric))]
        for metric in sorted(compared, key=lambda metric: metric.name != monitors[student]):  # a stable sort
            resamples = affordable_resamples(without_interval(metric), 1000, level=0.95)
            try:
                difference = paired_bootstrap(metric, *pair, resamples=resamples)
            except Exception as error:  # a user-defined metric may not be defined for all resamples
                warnings.warn(
                    f"the difference of {metric.name!r} between {student!r} and {baseline!r} has no interval, "
                    f"because a resample raised {type(error).__name__}: {first_line(error)}",
                    stacklevel=2,
                )
                continue
            yield baseline_difference(student, baseline, metric.name, difference)


def baseline_difference(student: str, baseline: str, metric: str, paired: Difference) -> BaselineDifference:
    """Return a paired difference with the names of its nets and metric."""
    return BaselineDifference(
        student=student,
        baseline=baseline,
        metric=metric,
        value=paired.value,
        interval=paired.interval,
        level=paired.level,
        verdict=paired.verdict,
        lower_is_better=paired.lower_is_better,
    )
