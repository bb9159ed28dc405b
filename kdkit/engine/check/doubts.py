"""Doubts about a stage: facts that prevent no run, but seldom are what the user wants."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import ceil

from torch import nn

from kdkit.data.dataset import Data
from kdkit.engine.check.dry_run import DryRunReport
from kdkit.engine.stage.training_batches import batches_per_epoch
from kdkit.errors import DataError
from kdkit.recipe.objective import as_objective
from kdkit.recipe.recipe import Stage, nets_of
from kdkit.utils.reprs import describe_names

_LARGEST_SHARE = 0.2  # of the first weights in the average at the end


def stage_doubts(stage: Stage, data: Data, report: DryRunReport) -> Iterator[str]:
    """Yield the doubts about a stage after its dry run."""
    training = stage.training
    if training.ema is not None:
        with suppress(DataError):  # of a stream without a length, which is a problem by itself
            updates = training.epochs * ceil(batches_per_epoch(data.train, training) / training.accumulate_steps)
            share = training.ema.decay**updates
            if share > _LARGEST_SHARE:
                yield (
                    f"stage {stage.name!r} has {updates:,} updates, after which {share:.0%} of the average of its "
                    f"weights are still the first ones, with a decay of {training.ema.decay:g}; pass a smaller one, "
                    "AverageWeights(decay=...)"
                )
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


def shared_net_doubts(stages: Sequence[Stage]) -> Iterator[str]:
    """Yield the networks that a later stage changes by training another one that shares parameters with them."""
    for net in nets_of(stages):
        if not isinstance(net.module, nn.Module):
            continue
        parameters = {id(parameter) for parameter in net.module.parameters()}
        # From the stage that trained it last; a teacher that no stage trains is complete from the start.
        last = max((index for index, stage in enumerate(stages) if net in stage.objectives), default=-1)
        changing = next(
            (
                (stage.name, trained.name)
                for stage in stages[last + 1 :]
                for trained in stage.objectives
                if any(id(part) in parameters and part.requires_grad for part in trained.network.parameters())
            ),
            None,
        )
        if changing is not None:
            yield (
                f"stage {changing[0]!r} changes net {net.name!r}, which shares parameters with net {changing[1]!r}: "
                f"its metrics, and what it teaches from then on, are those of the changed weights; if {net.name!r} is "
                "to stay as it is, give the other one a copy (copy.deepcopy)"
            )
