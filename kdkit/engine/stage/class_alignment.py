"""Align lists of classes. Classes that one side lacks are dropped, not filled with zeros."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdkit.data.dataset import Task
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.errors import RecipeError
from kdkit.losses.columns import SelectColumns
from kdkit.losses.sides import as_tuple
from kdkit.utils.reprs import describe_names

Columns = tuple[int, ...]  # indices of classes in an output, (batch, classes)


def shared_classes(
    sides: Sequence[Sequence[str]], description: str, order: Sequence[str]
) -> tuple[Columns, ...] | None:
    """Return the columns of the shared classes for each side, or None if all sides have the same classes in order.

    order: the classes of the data, which define the order of the shared classes, so that a vector over classes is right
    for any order of the sides. If the data lacks one of the shared classes, the order of the first side is kept.
    Raises RecipeError if no class is shared; the message names the sides by `description`.
    """
    first, *rest = map(tuple, sides)
    if all(side == tuple(order) for side in (first, *rest)):
        return None  # by far the most common case
    indices = [{name: index for index, name in enumerate(side)} for side in (first, *rest)]
    names = [name for name in first if all(name in index for index in indices[1:])]
    if not names:
        raise RecipeError(
            f"{description} share no class: {' against '.join(map(describe_names, (first, *rest)))}; name the outputs "
            "of a network by Net(..., classes=[...]) if they are not the classes of the data, and use a loss without "
            "labels for classes that the data lacks"
        )
    position = {name: number for number, name in enumerate(order)}
    if all(name in position for name in names):
        names.sort(key=position.__getitem__)
    if all(side == tuple(names) for side in (first, *rest)):
        return None
    return tuple(tuple(index[name] for name in names) for index in indices)


def shared_labels(labels: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return class indices as indices of the shared classes, and whether the class of each is shared.

    labels: of any shape. columns: the shared classes among those of the labels, (shared classes,).
    """
    matches = labels.unsqueeze(-1) == columns  # (..., shared classes)
    return matches.int().argmax(-1), matches.any(-1)


class ClassAlignment(nn.Module):
    """Reduce the inputs of a term to the classes that all its sides share.

    student: columns of the student's output; None if the student side is features. targets: columns for each teacher;
    empty if teacher outputs are not used. target_is_output: whether the target side is teacher outputs.
    labels: columns among the data's classes; None if labels are not used or not changed.
    student_head, target_head: the number of columns of a side that may be a tapped head; a side with another number of
    columns is a feature and is not changed.
    If labels are class indices, samples whose class is not shared are dropped.
    """

    def __init__(
        self,
        *,
        student: Columns | None,
        targets: tuple[Columns, ...],
        target_is_output: bool,
        labels: Columns | None,
        task: Task,
        student_head: int | None = None,
        target_head: int | None = None,
    ) -> None:
        super().__init__()
        self.student_head, self.target_head = student_head, target_head
        self.target_is_output = target_is_output
        self.drops_samples = task == "multiclass" and labels is not None
        self.student = None if student is None else SelectColumns(student)
        self.targets = nn.ModuleList(SelectColumns(columns) for columns in targets)
        # A buffer, so that it moves with the module; it is not part of a checkpoint.
        self.register_buffer("labels", None if labels is None else torch.tensor(labels), persistent=False)

    def forward(self, inputs: TermInputs) -> TermInputs:
        """Return the inputs with only the shared columns, and without samples whose class is not shared."""
        if self.student is not None:
            student = as_tuple(inputs.student)[0]
            if self.student_head in (None, student.shape[1]):
                inputs = inputs._replace(student=self.student(student))
        if self.target_is_output and inputs.target is not None:
            sides = as_tuple(inputs.target)
            if self.target_head in (None, sides[0].shape[1]):
                shared_sides = tuple(select(side) for select, side in zip(self.targets, sides, strict=True))
                inputs = inputs._replace(target=shared_sides if isinstance(inputs.target, tuple) else shared_sides[0])
        # `teacher_outputs` is empty unless the loss takes them, even if there are `targets` for the target side.
        pairs = zip(self.targets, inputs.teacher_outputs, strict=False)
        inputs = inputs._replace(teacher_outputs=tuple(select(output) for select, output in pairs))
        if not isinstance(self.labels, Tensor):
            return inputs
        if not self.drops_samples:
            return inputs._replace(labels=inputs.labels.index_select(1, self.labels))
        labels, is_shared = shared_labels(inputs.labels, self.labels)
        return inputs._replace(labels=labels).rows(is_shared.nonzero().squeeze(1))
