"""Note at the end of a run that a teacher is worse than the student that learned from it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from kdkit.metrics.base import Metric, MetricResult, is_better
from kdkit.nets.net import Net
from kdkit.recipe.objective import Match, as_objective
from kdkit.recipe.recipe import Stage, teachers_of

_CLEARLY = 0.02  # the relative difference of two metrics that is no chance


def note_weak_teachers(
    metrics: Mapping[str, dict[str, MetricResult]], stages: Iterable[Stage], metric: Metric, split: str
) -> bool:
    """Add a note to the metric of each frozen teacher that is clearly worse than its student; return if there is any.

    metrics: by network and name of the metric. split: on which they were computed.
    """
    pairs = {
        (teacher.name, student.name): None
        for stage in stages
        for student, objective in stage.objectives.items()
        for weighted in as_objective(objective)
        if isinstance(weighted.term, Match) and weighted.has_weight
        for teacher in teachers_of(weighted.term)
        if isinstance(teacher, Net)
    }
    has_any = False
    for teacher, student in pairs:
        results = [metrics.get(net, {}).get(metric.name) for net in (teacher, student)]
        if results[0] is None or results[1] is None or not is_better(metric, results[1].value, results[0].value):
            continue
        values = results[0].value, results[1].value
        if abs(values[0] - values[1]) > _CLEARLY * max(map(abs, values)):
            note = (
                f"{metric.name} of teacher {teacher!r} on {split}, {values[0]:.3g}, is worse than {values[1]:.3g} of "
                f"its student {student!r}; a better teacher may help more"
            )
            metrics[teacher][metric.name] = replace(results[0], note="; ".join(filter(None, [results[0].note, note])))
            has_any = True
    return has_any
