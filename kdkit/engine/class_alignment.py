"""Align lists of classes: classes that one side lacks are dropped, never filled with zeros."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdkit.data.dataset import Task
from kdkit.errors import RecipeError
from kdkit.losses.features import TensorOrTuple

Positions = tuple[int, ...]


class TermInputs(NamedTuple):
    """Everything the loss of a term may be called with. target: None if the labels are the target.

    teacher_outputs: the output of every matched teacher. weights: of the samples, (batch,), if they have any.
    batch_inputs: of all samples of the batch, also of those whose rows are left out.
    """

    student: TensorOrTuple
    target: TensorOrTuple | None
    labels: Tensor
    ids: Tensor | None
    teacher_outputs: tuple[Tensor, ...]
    weights: Tensor | None = None
    batch_inputs: Any = None


def map_sides(inputs: TermInputs, change: Callable[[Tensor], Tensor]) -> TermInputs:
    """Return the inputs with `change` applied to the student, the target and the teacher outputs."""

    def changed(side: TensorOrTuple) -> TensorOrTuple:
        return tuple(map(change, side)) if isinstance(side, tuple) else change(side)

    return inputs._replace(
        student=changed(inputs.student),
        target=None if inputs.target is None else changed(inputs.target),
        teacher_outputs=tuple(map(change, inputs.teacher_outputs)),
    )


def shared_classes(sides: Sequence[Sequence[str]], description: str) -> tuple[Positions, ...] | None:
    """Return, for each side, the positions of the classes that all sides share, or None if all sides are equal.

    Classes keep the order of the first side. Raises RecipeError, which names the sides by `description`, if no class is
    shared.
    """
    first, *rest = map(tuple, sides)
    if all(side == first for side in rest):
        return None
    names = [name for name in first if all(name in side for side in rest)]
    if not names:
        against = " against ".join(f"{', '.join(side[:5])} ..." for side in (first, *rest))
        raise RecipeError(f"{description} share no class: {against}")
    return tuple(tuple(side.index(name) for name in names) for side in (first, *rest))


class ClassAlignment(nn.Module):
    """Reduce the inputs of a term to the classes that all its sides share.

    student: positions among the student's classes; None if the student side is features. targets: positions for each
    teacher, empty if teacher outputs are not used. target_is_output: whether the target side is teacher outputs.
    labels: positions among the data's classes; None if the labels are not used.
    If labels are class indices, samples whose class is not shared are dropped.
    """

    def __init__(
        self,
        *,
        student: Positions | None,
        targets: tuple[Positions, ...],
        target_is_output: bool,
        labels: Positions | None,
        task: Task,
    ) -> None:
        super().__init__()
        self.target_is_output = target_is_output
        self.drops_samples = task == "multiclass" and labels is not None
        # Buffers, so that the positions move with the module to its device; they are not part of a checkpoint.
        self.register_buffer("student", None if student is None else torch.tensor(student), persistent=False)
        self.register_buffer("labels", None if labels is None else torch.tensor(labels), persistent=False)
        self.targets = nn.ModuleList(_Columns(positions) for positions in targets)

    def forward(self, inputs: TermInputs) -> TermInputs:
        """Return the inputs with the shared columns only, and without samples whose class is not shared."""
        student, target, labels, ids, teacher_outputs, weights, batch_inputs = inputs
        if isinstance(self.student, Tensor):
            output = student[0] if isinstance(student, tuple) else student
            student = output.index_select(1, self.student)
        if self.target_is_output and target is not None:
            sides = target if isinstance(target, tuple) else (target,)
            columns = tuple(select(side) for select, side in zip(self.targets, sides, strict=True))
            target = columns if isinstance(target, tuple) else columns[0]
        # Empty unless the loss takes them, although `targets` may be there for the target side.
        teacher_outputs = tuple(select(output) for select, output in zip(self.targets, teacher_outputs, strict=False))
        if not isinstance(self.labels, Tensor):
            return TermInputs(student, target, labels, ids, teacher_outputs, weights, batch_inputs)
        if not self.drops_samples:
            labels = labels.index_select(1, self.labels)
            return TermInputs(student, target, labels, ids, teacher_outputs, weights, batch_inputs)
        matches = labels.unsqueeze(1) == self.labels  # (batch, shared classes)
        shared = matches.any(1)
        rows = TermInputs(
            student,
            target,
            matches.int().argmax(1)[shared],
            None if ids is None else ids[shared],
            teacher_outputs,
            None if weights is None else weights[shared],
            batch_inputs,
        )
        return map_sides(rows, lambda side: side[shared])


class _Columns(nn.Module):
    """Select the shared columns of one teacher's output: (batch, classes) -> (batch, shared)."""

    positions: Tensor

    def __init__(self, positions: Positions) -> None:
        super().__init__()
        self.register_buffer("positions", torch.tensor(positions), persistent=False)

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs.index_select(1, self.positions)
