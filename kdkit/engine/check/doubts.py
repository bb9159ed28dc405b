"""Doubts about a stage: facts that prevent no run, but seldom are what the user wants."""

from collections.abc import Iterator

from kdkit.engine.check.dry_run import DryRunReport
from kdkit.recipe.objective import as_objective
from kdkit.recipe.recipe import Stage
from kdkit.utils.reprs import describe_names


def stage_doubts(stage: Stage, report: DryRunReport) -> Iterator[str]:
    """Yield the doubts about a stage after its dry run."""
    training = stage.training
    if training.optimizer.options.get("lr") == 0 and training.optimizer.groups is None:
        yield f"stage {stage.name!r} has a learning rate of 0, by which nothing is trained"
    idle = [
        net
        for net, objective in stage.objectives.items()
        if not any(weighted.has_weight for weighted in as_objective(objective))
    ]
    for net in idle:
        yield f"stage {stage.name!r}: every term of net {net.name!r} has the weight 0, so nothing trains it"
    if report.untrained_outputs and training.keep is None and not idle:
        nets = describe_names(repr(net.name) for net in stage.objectives)
        yield (
            f"stage {stage.name!r} keeps its last epoch instead of the best one: its terms do not train the outputs of "
            f"{nets}, so metrics of them mean nothing; to choose by the metric, pass Training(keep='best')"
        )
