"""Check a schedule: the stages it gives, and that whoever teaches in one is trained by then."""

from collections.abc import Callable

from kdkit.errors import ContractError
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Schedule, Stage, nets_of


def check_schedule(make_schedule: Callable[[], Schedule]) -> None:
    """Check a schedule. Raises ContractError with the first thing that does not hold.

    Held to: it gives stages, at least one; nets and stages have names of their own; each net that teaches comes
    trained or was trained in an earlier stage.
    """
    schedule = make_schedule()
    name = type(schedule).__name__
    if not isinstance(schedule, Schedule | list | tuple):
        raise ContractError(f"{name} is not a schedule: it has no stages()")
    stages = list(schedule.stages() if isinstance(schedule, Schedule) else schedule)
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        given = ", ".join(type(stage).__name__ for stage in stages)
        raise ContractError(f"{name} gives stages, at least one; got {given or 'none'}")
    for what, names in (("stages", [each.name for each in stages]), ("nets", [net.name for net in nets_of(stages)])):
        if len(set(names)) < len(names):
            raise ContractError(f"{name} gives {what} of the same name: {', '.join(sorted(names))}")
    trained = {net for net in nets_of(stages) if net.trained}
    for stage in stages:
        for source in stage.teachers:
            if isinstance(source, Net) and source not in trained:
                raise ContractError(
                    f"in stage {stage.name!r} of {name} net {source.name!r} teaches, but nobody trained it before"
                )
        trained |= set(stage.objectives)
