"""Check the contract of a schedule: it returns stages in an order that trains every teacher first."""

from collections.abc import Callable

from kdkit.errors import ContractError, describe
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Schedule, Stage, nets_of
from kdkit.teachers.base import OnlineTeacher


def check_schedule(make_schedule: Callable[[], Schedule]) -> None:
    """Check a schedule. Raises ContractError for the first check that fails.

    The schedule returns at least one stage. Nets and stages have unique names. Each net that is a teacher is already
    trained, or is trained in an earlier stage, but not in this one. The net of another teacher, such as Peer(net), is
    trained in this stage.
    """
    if not callable(make_schedule):
        raise ContractError(
            "check_schedule takes a function that returns a schedule, such as lambda: my_schedule; got "
            f"{describe(make_schedule)}"
        )
    schedule = make_schedule()
    name = type(schedule).__name__
    if not isinstance(schedule, Schedule | list | tuple):
        raise ContractError(f"{name} is not a schedule: it has no stages()")
    stages = list((schedule.stages() if isinstance(schedule, Schedule) else schedule) or ())
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        types = ", ".join(type(stage).__name__ for stage in stages)
        raise ContractError(f"{name} must return at least one Stage, and nothing else; got {types or 'none'}")
    stage_names, net_names = [stage.name for stage in stages], [net.name for net in nets_of(stages)]
    for kind, names in (("stages", stage_names), ("nets", net_names)):
        if len(set(names)) < len(names):
            raise ContractError(f"{name} returns {kind} with the same name: {', '.join(sorted(names))}")
    trained = {net for net in nets_of(stages) if net.trained}
    for stage in stages:
        prefix = f"stage {stage.name!r} of {name}"
        for teacher in stage.teachers:
            if isinstance(teacher, Net) and teacher in stage.objectives:
                raise ContractError(
                    f"{prefix} trains net {teacher.name!r}, which is also a frozen teacher in it; match Peer(net), "
                    "Past(net) or Ema(net)"
                )
            if isinstance(teacher, Net) and teacher not in trained:
                raise ContractError(f"{prefix} has net {teacher.name!r} as a teacher, but no earlier stage trains it")
        for teacher in (match.teacher for match in stage.matches):
            if isinstance(teacher, OnlineTeacher) and teacher.net not in stage.objectives:
                raise ContractError(
                    f"{prefix} has {teacher.name!r} as a teacher, but does not train net {teacher.net.name!r}; match "
                    "the net itself, or train it here too"
                )
        trained |= set(stage.objectives)
