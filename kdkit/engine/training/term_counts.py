"""Count the entries of a batch that a loss averages over, to weight the batches of an update."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.data.batch import Batch
from kdkit.data.labels import is_ignored
from kdkit.engine.stage.class_alignment import shared_labels
from kdkit.engine.stage.terms import BoundTerm
from kdkit.losses.base import BuildContext, Loss, describe_loss, function_of, is_of_torch, option_of
from kdkit.losses.chunked import Chunked
from kdkit.losses.hard_labels import SecondHead
from kdkit.losses.label_losses import IgnoreUnknown, SampleWeighted
from kdkit.losses.positions import Masked, PerPosition, PerToken
from kdkit.recipe.objective import model_loss

Count = Callable[[Batch], Tensor]


def count_of(term: BoundTerm, context: BuildContext) -> Count | Literal["sum", "samples"]:
    """Return a function that counts the entries of a batch that a term averages over, as a scalar on its device.

    Returns "samples" if the number is proportional to the number of samples, or unknown; "sum" for a loss that is a
    sum, not a mean.
    """
    if term.is_sum:
        return "sum"
    loss = _of_outputs(term.loss)
    if _is_unknown(term, context) or not (_selects_entries(term, loss) or _counts_labels(term, loss, context)):
        return "samples"
    return _TermCount(term, loss)


def unknown_count(term: BoundTerm, context: BuildContext) -> str | None:
    """Return a notice if the loss of a term may leave out labels in a way that kdkit cannot know, or None."""
    if not _is_unknown(term, context):
        return None
    return (
        f"term {term.label!r}: the number of labels that {describe_loss(term.loss)} averages over is unknown, so the "
        "batches of an update, and the parts of processes, are weighted by samples instead of labels"
    )


def _selects_entries(term: BoundTerm, loss: Loss) -> bool:
    """Whether a loss, or the term before it is called, leaves out or weights entries of a batch."""
    return (
        isinstance(loss, Masked | PerPosition | PerToken | SampleWeighted)
        or (term.target is None and isinstance(loss, IgnoreUnknown))
        or term.rows is not None
        or (term.alignment is not None and term.alignment.drops_samples)
    )


def _counts_labels(term: BoundTerm, loss: Loss, context: BuildContext) -> bool:
    """Whether the mean of a loss on the labels is over labels whose number or weight differs between samples."""
    has_class_weights = _is_cross_entropy(loss) and option_of(loss, "weight") is not None
    return term.target is None and (bool(term.ignored) or context.position_dims > 0 or has_class_weights)


@dataclass(frozen=True, slots=True)
class _TermCount:
    term: BoundTerm
    loss: Loss

    def __call__(self, batch: Batch) -> Tensor:
        """Return the sum of the weights that entries have in the mean of the loss, which are 0 or 1 for most losses."""
        loss: Any = self.loss
        if isinstance(loss, Masked):
            return loss.masks_of(batch.inputs, pairs=loss.of_pairs)[0].sum()
        counts = self._counts(batch.labels)
        if isinstance(loss, SampleWeighted) and batch.weights is not None:
            counts = batch.weights.view(-1, *(1 for _ in counts.shape[1:])) * counts  # (batch, 1, ...)
        return counts.sum()

    def _counts(self, labels: Tensor) -> Tensor:
        """Return the weight of each entry in the mean, without the weights of samples."""
        loss: Any = self.loss
        if isinstance(loss, SampleWeighted):
            if self.term.target is not None:  # it compares all samples with a teacher, whatever their labels
                return torch.ones_like(labels)
            loss = loss.loss
        is_merged = self.term.rows is not None or self.term.ignore_index is not None
        ignored = (*(self.term.ignored if is_merged else ()), option_of(self.loss, "ignore_index"))
        counts, labels = self._selected(labels, tuple(label for label in ignored if label is not None))
        return counts * _class_weights(loss, labels, counts)

    def _selected(self, labels: Tensor, ignored: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return a boolean mask of the entries that the loss takes, and the labels as indices of shared classes."""
        alignment = self.term.alignment
        columns: Any = None if alignment is None else alignment.labels
        if labels.is_floating_point():
            if columns is not None:
                labels = labels.index_select(1, columns)
            has_label = ~labels.isnan()
            # For a loss on classes, a row of probabilities is one entry.
            by_row = _is_cross_entropy(getattr(self.loss, "loss", self.loss)) or self.term.rows is not None
            return has_label.any(1) if by_row and labels.ndim > 1 else has_label, labels
        counts = ~is_ignored(labels, ignored)
        if columns is not None:
            labels, is_shared = shared_labels(labels, columns)
            counts = counts & is_shared
        return counts, labels


def _class_weights(loss: Any, labels: Tensor, counts: Tensor) -> Tensor | float:
    """Return the weight of each label in the mean of a torch loss, which divides by the sum of class weights."""
    weight = option_of(loss, "weight")
    if not _is_cross_entropy(loss) or weight is None or labels.is_floating_point():
        return 1.0
    selected: Tensor = weight[torch.where(counts, labels, 0)]  # an ignored label, such as -100, is not a valid index
    return selected


def _is_cross_entropy(loss: Any) -> bool:
    return isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or function_of(loss) in (F.cross_entropy, F.nll_loss)


def _of_outputs(loss: Loss) -> Loss:
    """Return the loss inside a SecondHead or Chunked, or the loss itself."""
    return loss.loss if isinstance(loss, SecondHead | Chunked) else loss


def _is_unknown(term: BoundTerm, context: BuildContext) -> bool:
    loss: Any = _of_outputs(term.loss)
    if loss is model_loss:
        return True
    is_ours = is_of_torch(loss) or type(loss).__module__.split(".")[0] in ("torch", "kdkit")
    return term.target is None and not is_ours and (bool(term.ignored) or context.has_unknown)
