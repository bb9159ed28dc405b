"""Apply losses on outputs chunk by chunk; the outputs of a chunk are computed from hidden states and not kept."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdkit.errors import RecipeError, describe
from kdkit.losses.base import (
    BuildableLoss,
    BuildContext,
    Loss,
    allows_any_classes,
    extra_kwargs_of,
    is_mean_over_rows,
    requirements_of,
)
from kdkit.losses.columns import SelectColumns
from kdkit.losses.numerics import upcast_half
from kdkit.losses.sides import Shapes
from kdkit.losses.validation import validate_count

Head = Callable[[Tensor], Tensor]


class Chunked(nn.Module):
    """Apply a loss on outputs to chunks of rows. A head computes the outputs of one chunk at a time, never all at once.

    Unit, reduction, value and gradients are those of `loss` over all rows; 0 if there are no rows. Both sides are the
    inputs of heads, captured by a HeadTap: the hidden states of tokens, one row per labelled token. Chunks are computed
    again in the backward pass, so memory holds the outputs of one chunk instead of all tokens, and the student's head
    runs twice. Half-precision outputs are compared in float32. loss: a loss of kdkit on outputs that is a mean over
    rows (`mean_over_rows`), or nn.CrossEntropyLoss with reduction "mean" or "sum". It may take labels. rows: the size
    of a chunk. The largest tensors of a step have the shape (rows, classes).
    heads: functions from hidden states (rows, channels) to outputs (rows, classes), for the student and for the target.
    Needed in a loop without a Distiller, and if the network changes the outputs of its head, such as by a soft cap.
    None uses the heads of the taps. Without a head for the target, the target is outputs or labels.
    Raises RecipeError for another loss.

    Formula: loss(h(s), k(t)), with h and k the heads
    Shapes: features (N, C)
    Source: public code: Liger Kernel, LigerFusedLinearJSDLoss; the loss in chunks is that of `loss` itself
    """

    per_position = True
    accepts_no_rows = True

    def __init__(self, loss: Loss, *, rows: int = 256, heads: tuple[Head, Head] | tuple[Head] | None = None) -> None:
        super().__init__()
        self.of_labels = isinstance(loss, nn.CrossEntropyLoss)
        self.reduction = getattr(loss, "reduction", None)
        is_cross_entropy = self.of_labels and self.reduction in ("mean", "sum")
        is_of_rows = not isinstance(loss, type | BuildableLoss) and is_mean_over_rows(loss)
        if not is_cross_entropy and (not is_of_rows or extra_kwargs_of(loss) - {"labels"}):
            raise RecipeError(
                "Chunked takes nn.CrossEntropyLoss(), or a loss on outputs that is a mean over rows, such as "
                f"ReverseKL(); got {describe(loss)}"
            )
        validate_count("rows, the size of a chunk,", rows)
        if heads is not None and not (isinstance(heads, tuple) and 1 <= len(heads) <= 2 and all(map(callable, heads))):
            raise RecipeError(f"heads is a tuple of a function for the student, and one for the target; got {heads!r}")
        self.loss, self.rows = loss, rows
        self.extra_kwargs, self.requires = extra_kwargs_of(loss), requirements_of(loss)
        self.ignore_index = getattr(loss, "ignore_index", None)
        # Tuples hide the weights of the networks from self.parameters().
        self._given, self._heads = heads, _both(heads)
        self.student_columns: nn.Module = nn.Identity()
        self.target_columns: nn.Module = nn.Identity()

    @property
    def any_classes(self) -> bool:
        """Whether the sides may have different classes, as for `loss`."""
        return allows_any_classes(self.loss)

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Store the heads. Raises RecipeError if the student has none, or if the loss does not fit the target."""
        self._heads = context.heads if self._given is None else _both(self._given)
        if self._heads[0] is None or len(student) != 1 or len(target) != 1:
            raise RecipeError(
                "Chunked takes the input of a head, one tap on each side: student=HeadTap(net.module.lm_head), and "
                "target=HeadTap(...) of the teacher; got another tap: pass its head, Chunked(loss, heads=(...))"
            )
        for name, columns in zip(("student_columns", "target_columns"), context.columns, strict=True):
            setattr(self, name, nn.Identity() if columns is None else SelectColumns(columns))

    def forward(self, student: Tensor, target: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """Return the loss of all rows.

        student: (rows, channels). target: (rows, channels) if it has a head, otherwise outputs (rows, classes), or
        labels (rows,). labels: (rows,), for a loss that takes them. Raises RecipeError for other shapes, or without a
        head.
        """
        if self._heads[0] is None or student.ndim != 2 or len(target) != len(student):
            raise RecipeError(
                "Chunked takes hidden states (rows, channels) and a target of as many rows, such as hidden[labels != "
                f"-100], and their heads, Chunked(loss, heads=(...)); got {tuple(student.shape)} and "
                f"{tuple(target.shape)}"
            )
        mean = self._mean
        if torch.compiler.is_compiling():  # not compiled: the number of chunks varies. As a decorator, it takes seconds
            mean = torch.compiler.disable(mean)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return mean(student, target, labels)

    def extra_repr(self) -> str:
        """Return the loss and the size of a chunk, for the printed plan of a recipe."""
        name = type(self.loss).__name__ if isinstance(self.loss, nn.Module) else repr(self.loss)
        return f"{name}, rows={self.rows}"

    def _mean(self, student: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
        total = torch.zeros((), device=student.device)
        # If there are no rows, there is one empty chunk, so that the weights of the head get a gradient of 0.
        for first in range(0, max(1, len(student)), self.rows):
            part = slice(first, first + self.rows)
            kwargs = {} if labels is None or not self.extra_kwargs else {"labels": labels[part]}
            arguments = (student[part], target[part], kwargs)
            total = total + checkpoint(self._sum, *arguments, use_reentrant=False, preserve_rng_state=False)
        return total if self.reduction == "sum" else total / self._count(target)

    def _sum(self, student: Tensor, target: Tensor, kwargs: dict[str, Tensor]) -> Tensor:
        """Return the sum of the loss over the rows of a chunk, for `_mean`."""
        student_head, target_head = self._heads
        assert student_head is not None
        outputs = upcast_half(self.student_columns(student_head(student)))
        if not len(student):
            return outputs.sum()
        if self.of_labels:
            loss: Any = self.loss
            options = {"ignore_index": loss.ignore_index, "label_smoothing": loss.label_smoothing}
            return nn.functional.cross_entropy(outputs, target, loss.weight, reduction="sum", **options)
        if target_head is not None:
            with torch.no_grad():
                target = upcast_half(self.target_columns(target_head(target)))
        else:
            target = self.target_columns(target)
        return self.loss(outputs, target, **kwargs) * len(student)

    def _count(self, target: Tensor) -> Tensor | int:
        """Return the divisor of the sum: the number of rows, or the total class weight of their labels."""
        if not self.of_labels or target.is_floating_point():
            return max(1, len(target))
        loss: Any = self.loss
        has_label: Tensor = target != loss.ignore_index
        if loss.weight is None:
            return has_label.sum().clamp(min=1)
        # torch divides by the class weights of the labels. An ignored label, such as -100, is not a valid index.
        weights: Tensor = loss.weight[torch.where(has_label, target, 0)] * has_label
        return weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def _both(heads: tuple[Head, ...] | None) -> tuple[Head | None, Head | None]:
    """Return the heads of student and target, with None for a missing one."""
    first, second, *_ = (*(heads or ()), None, None)
    return first, second
