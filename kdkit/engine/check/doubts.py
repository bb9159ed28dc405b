"""Doubts about a stage: facts that prevent no run, but seldom are what the user wants."""

from collections.abc import Iterator

from kdkit.engine.check.dry_run import DryRunReport
from kdkit.recipe.recipe import Stage
from kdkit.utils.reprs import describe_names


def stage_doubts(stage: Stage, report: DryRunReport) -> Iterator[str]:
    """Yield the doubts about a stage after its dry run."""
    if report.untrained_outputs and stage.training.keep is None:
        nets = describe_names(repr(net.name) for net in stage.objectives)
        yield (
            f"stage {stage.name!r} keeps its last epoch instead of the best one: its terms do not train the outputs of "
            f"{nets}, so metrics of them mean nothing; to choose by the metric, pass Training(keep='best')"
        )
