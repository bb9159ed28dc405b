"""Notice labels of a language model that are its inputs, so that it would learn to repeat the token that it reads."""

from collections.abc import Mapping

from torch import nn

from kdkit.data.batch import Batch, nested_tensors
from kdkit.losses.base import BuildContext, is_per_position
from kdkit.nets.head_tap import HeadTap
from kdkit.recipe.objective import Truth, as_objective
from kdkit.recipe.recipe import Stage

_LABELS = ("labels", "label", "targets", "target")  # inputs of models that compute a loss themselves


def copied_labels_notice(stage: Stage, batch: Batch, context: BuildContext, *, has_metrics: bool) -> str | None:
    """Return a notice if the labels of a batch are its input tokens, and a loss or a metric compares them unshifted.

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
                    f"token that it reads; if it predicts the next one, {shift}"
                )
    if not has_metrics:
        return None
    return (
        "the labels are the input tokens, and metrics compare the output at a token with the label there; if the "
        f"network predicts the next token, {shift} (a model that computes its own loss shifts those among its inputs)"
    )


def _are_inputs(batch: Batch, context: BuildContext) -> bool:
    """Return whether labels per token equal input tokens, at all positions with a label."""
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
    # Only the first tensor of a tuple: a model that computes a loss takes the labels as a later one.
    tokens = next(iter(nested_tensors(inputs)), None)
    if tokens is None or tokens.is_floating_point() or tokens.shape != labels.shape or not has_label.any():
        return False
    return bool((tokens[has_label] == labels[has_label]).all())
