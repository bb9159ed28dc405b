"""Notices about a stage: settings that are valid but rarely intended."""

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

_LARGEST_SHARE = 0.2  # of the initial weights in the final average


def stage_notices(stage: Stage, data: Data, report: DryRunReport) -> Iterator[str]:
    """Yield notices about a stage after its dry run."""
    training = stage.training
    if training.ema is not None:
        with suppress(DataError):  # a stream without a length, which is reported as a problem
            updates = training.epochs * ceil(batches_per_epoch(data.train, training) / training.accumulate_steps)
            share = training.ema.decay**updates
            if share > _LARGEST_SHARE:
                yield (
                    f"stage {stage.name!r} has {updates:,} updates: with a decay of {training.ema.decay:g}, "
                    f"{share:.0%} of the average of its weights still comes from the initial ones at the end; pass a "
                    "smaller decay, AverageWeights(decay=...)"
                )
    if training.optimizer.options.get("lr") == 0 and training.optimizer.groups is None:
        yield f"stage {stage.name!r} has a learning rate of 0, so nothing is trained"
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
            f"{nets}, so their metrics mean nothing; to choose by the metric anyway, pass Training(keep='best')"
        )


def shared_net_notices(stages: Sequence[Stage]) -> Iterator[str]:
    """Yield notices about networks that a later stage changes by training another network with shared parameters."""
    for net in nets_of(stages):
        if not isinstance(net.module, nn.Module):
            continue
        parameters = {id(parameter) for parameter in net.module.parameters()}
        # Only stages after the last one that trains the network matter; for a teacher that no stage trains, all do.
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
                f"its metrics and its outputs as a teacher are then those of the changed weights; if {net.name!r} must "
                f"stay as it is, give net {changing[1]!r} a copy (copy.deepcopy)"
            )
