"""Bring lists of classes together: what one side lacks is left out, never filled with zeros."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdkit.data.dataset import Task
from kdkit.errors import RecipeError
from kdkit.losses.features import TensorOrTuple

Positions = tuple[int, ...]


class TermInputs(NamedTuple):
    """What a term compares, and what its loss may ask for beside: target is None where the labels are the target.

    answers: the outputs of everyone that is matched.
    """

    student: TensorOrTuple
    target: TensorOrTuple | None
    labels: Tensor
    ids: Tensor | None
    teacher_outputs: tuple[Tensor, ...]


def shared(sides: Sequence[Sequence[str]], what: str) -> tuple[Positions, ...] | None:
    """Return where each side has the classes that all share, or None where all are the same.

    They come in the order of the first side. Raises RecipeError where no class is shared.
    """
    first, *others = map(tuple, sides)
    if all(other == first for other in others):
        return None
    names = [name for name in first if all(name in other for other in others)]
    if not names:
        against = " against ".join(f"{', '.join(each[:5])} ..." for each in (first, *others))
        raise RecipeError(f"{what} share no class: {against}")
    return tuple(tuple(side.index(name) for name in names) for side in (first, *others))


class ClassAlignment(nn.Module):
    """Cut a comparison down to the classes that all its sides share.

    student: positions among the student's classes; None where it is compared by features. targets: for each that is
    matched, empty where outputs are of no matter. outputs: whether the targets are the outputs. labels: positions
    among the data's classes; None where the labels are of no matter. Of labels that are one class per sample, samples
    of a class that is not shared are left out. The positions are buffers, which move with the net and are not saved.
    """

    def __init__(
        self,
        *,
        student: Positions | None,
        targets: tuple[Positions, ...],
        outputs: bool,
        labels: Positions | None,
        task: Task,
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.rows = task == "multiclass" and labels is not None
        self.register_buffer("student", _buffer(student), persistent=False)
        self.register_buffer("labels", _buffer(labels), persistent=False)
        self.targets = nn.ModuleList(_Columns(each) for each in targets)

    def forward(self, given: TermInputs) -> TermInputs:
        """Return the shared columns of outputs, answers and labels, and the rows of which the class is shared."""
        student, target, labels, ids, teacher_outputs = given
        if isinstance(self.student, Tensor):
            student = _only(student).index_select(1, self.student)
        if self.outputs and target is not None:
            cut = tuple(columns(each) for columns, each in zip(self.targets, _several(target), strict=True))
            target = cut if isinstance(target, tuple) else cut[0]
        teacher_outputs = tuple(columns(each) for columns, each in zip(self.targets, teacher_outputs, strict=False))
        if not isinstance(self.labels, Tensor):
            return TermInputs(student, target, labels, ids, teacher_outputs)
        if not self.rows:
            return TermInputs(student, target, labels.index_select(1, self.labels), ids, teacher_outputs)
        matches = labels.unsqueeze(1) == self.labels
        known = matches.any(1)
        return TermInputs(
            _rows(student, known),
            None if target is None else _rows(target, known),
            matches.int().argmax(1)[known],
            None if ids is None else ids[known],
            tuple(each[known] for each in teacher_outputs),
        )


class _Columns(nn.Module):
    """The shared columns of one who is matched."""

    positions: Tensor

    def __init__(self, positions: Positions) -> None:
        super().__init__()
        self.register_buffer("positions", _buffer(positions), persistent=False)

    def forward(self, outputs: Tensor) -> Tensor:
        """(batch, classes) -> (batch, shared)."""
        return outputs.index_select(1, self.positions)


def _buffer(positions: Positions | None) -> Tensor | None:
    return None if positions is None else torch.tensor(positions)


def _only(side: TensorOrTuple) -> Tensor:
    return side[0] if isinstance(side, tuple) else side


def _several(side: TensorOrTuple) -> tuple[Tensor, ...]:
    return side if isinstance(side, tuple) else (side,)


def _rows(side: TensorOrTuple, known: Tensor) -> TensorOrTuple:
    return tuple(each[known] for each in side) if isinstance(side, tuple) else side[known]
