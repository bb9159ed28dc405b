"""Notices about a stage: settings that are valid but rarely intended."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import ceil

from torch import nn

from kdkit.data.batch import Batch, nested_tensors
from kdkit.data.dataset import Data
from kdkit.engine.check.dry_run import DryRunReport
from kdkit.engine.stage.training_batches import batches_per_epoch
from kdkit.errors import DataError
from kdkit.losses.base import BuildContext, is_per_position
from kdkit.nets.taps import HeadTap
from kdkit.recipe.objective import Truth, as_objective
from kdkit.recipe.recipe import Stage, nets_of
from kdkit.utils.reprs import describe_names

_LARGEST_SHARE = 0.2  # of the initial weights in the final average
_LABELS = ("labels", "label", "targets", "target")  # inputs of models that compute a loss themselves


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


def copied_labels_notice(stage: Stage, batch: Batch, context: BuildContext, *, has_metrics: bool) -> str | None:
    """Return a notice if the labels of a batch are its input tokens, and a loss or metric uses them unshifted.

    A language model would then learn to repeat the token that it reads.
    has_metrics: whether metrics compare outputs with these labels, even if the model shifts them for its own loss.
    """
    if not _are_inputs(batch, context):
        return None
    ignored = -100 if -100 in context.ignored_labels else context.ignored_labels[0]
    shift = (
        "shift the labels of all splits, such as in the collate_fn of their DataLoaders: "
        f"labels = nn.functional.pad(labels[:, 1:], (0, 1), value={ignored})"
    )
    for net, objective in stage.objectives.items():
        for term in (weighted.term for weighted in as_objective(objective)):
            compares_outputs = isinstance(term.loss, nn.CrossEntropyLoss) or is_per_position(term.loss)
            is_of_outputs = term.student is None or isinstance(term.student, HeadTap)
            if isinstance(term, Truth) and is_of_outputs and compares_outputs:
                return (
                    f"the labels are the input tokens, so term {term.label!r} trains net {net.name!r} to repeat the "
                    f"token that it reads; if it predicts the next token, {shift}"
                )
    if not has_metrics:
        return None
    return (
        "the labels are the input tokens, and metrics compare the output at a token with its own label; if the "
        f"network predicts the next token, {shift} (a model that computes its own loss shifts the labels among its "
        "inputs itself)"
    )


def _are_inputs(batch: Batch, context: BuildContext) -> bool:
    """Return whether the labels equal the input tokens at all positions with a label."""
    labels = batch.labels
    if context.task != "multiclass" or context.position_dims != 1 or not context.ignored_labels:
        return False
    has_label = labels >= 0
    for ignored in context.ignored_labels:
        has_label &= labels != ignored
    inputs = batch.inputs
    if isinstance(inputs, Mapping):
        names = [name for name in inputs if name not in _LABELS]
        inputs = inputs["input_ids"] if "input_ids" in names else [inputs[name] for name in names]
    # Only the first tensor of a tuple: a model that computes a loss takes the labels as a later element.
    tokens = next(iter(nested_tensors(inputs)), None)
    if tokens is None or tokens.is_floating_point() or tokens.shape != labels.shape or not has_label.any():
        return False
    return bool((tokens[has_label] == labels[has_label]).all())
