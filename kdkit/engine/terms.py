"""Bind the terms of an objective to the networks and taps of a stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdkit.data.labels import is_ignored
from kdkit.engine.class_alignment import ClassAlignment, TermInputs, shared_classes
from kdkit.engine.positions import LabelledRows
from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext, Loss, allows_any_classes, extra_kwargs_of, is_per_position
from kdkit.losses.features import TensorOrTuple
from kdkit.nets.net import Net
from kdkit.nets.taps import TapLike
from kdkit.recipe.objective import Match, Taps, Weighted, taps_of
from kdkit.recipe.recipe import Stage, teachers_of
from kdkit.teachers.base import Teacher, TeacherOutput, TeacherOutputs
from kdkit.teachers.ensemble import Teachers
from kdkit.teachers.peer import Peer

THE_DATA = "the data"  # stands for the data set among the names of networks in error messages


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Points to one side of a term: for each network, by name, the index of a tap, or None for its output.

    is_tuple: the side is a tuple of tensors, also if it has a single element.
    """

    entries: tuple[tuple[str, int | None], ...]
    is_tuple: bool = False

    def resolve(self, outputs: TeacherOutputs) -> TensorOrTuple:
        """Return the tensor, or the tuple of tensors."""
        if self.is_tuple:
            return tuple(_tensor(outputs[name], tap) for name, tap in self.entries)
        name, tap = self.entries[0]
        return _tensor(outputs[name], tap)

    @property
    def is_output(self) -> bool:
        """Whether every tensor is a network output, which has a column per class, and none a feature."""
        return all(tap is None for _, tap in self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundTerm:
    """A term of an objective with the networks and taps that it compares.

    target: None if the labels are the target. teachers: the names of the matched networks. extra_kwargs: the keyword
    arguments of the loss, such as "labels". rows: how the inputs become rows that have a label, None if they need not.
    alignment: None if both sides have the same classes.
    direct: the loss takes both sides as they are: it has no extra arguments, no outputs have to be filled in, no rows
    to be selected, and no classes to be aligned.
    ignore_index: the label that a loss on the labels leaves out, if the data has such labels; None otherwise.
    ignored: all labels of the data that mean "no label"; they are replaced by `ignore_index` before the loss is called.
    """

    label: str
    weighted: Weighted
    student_net: Net[Any]
    loss: Loss
    student: TensorRef
    target: TensorRef | None
    teachers: tuple[str, ...]
    extra_kwargs: frozenset[str]
    rows: LabelledRows | None
    alignment: ClassAlignment | None
    direct: bool
    ignore_index: int | None
    ignored: tuple[int, ...]

    def merge_ignored_labels(self, inputs: TermInputs) -> TermInputs:
        """Return the inputs with one label for "no label", since a loss leaves out only one."""
        if self.ignore_index is None or self.ignored == (self.ignore_index,):
            return inputs
        labels = inputs.labels
        # Not a selection of the others, which would wait for the device.
        return inputs._replace(labels=labels.masked_fill(is_ignored(labels, self.ignored), self.ignore_index))


def bind_term(
    net: Net[Any], weighted: Weighted, stage: Stage, taps: Mapping[str, tuple[TapLike, ...]], context: BuildContext
) -> BoundTerm:
    """Bind a term of the objective of `net`.

    taps: on each network in training, by name; a tap has the same index here as its feature in a TeacherOutput.
    Raises RecipeError if the sides have no class in common.
    """
    term = weighted.term
    match = term if isinstance(term, Match) else None
    student = _refer(net.name, term.student, taps[net.name])
    target = None if match is None else _target(match, stage, taps)
    extra_kwargs = extra_kwargs_of(term.loss)
    members = () if match is None else _members(match.teacher)
    rows = _labelled_rows(term.loss, match, extra_kwargs, context)
    alignment = None
    if not allows_any_classes(term.loss):
        alignment = _align(net, match, (student, target), extra_kwargs, context, takes_rows=rows is not None)
    ignore_index = getattr(term.loss, "ignore_index", None)
    if match is not None or rows is not None or not context.ignored_labels or not isinstance(ignore_index, int):
        ignore_index = None
    # A Net and a Peer have an output for every sample; other teachers may leave some out.
    complete = all(isinstance(member, Net | Peer) for member in members)
    return BoundTerm(
        label=term.label if len(stage.objectives) == 1 else f"{net.name}: {term.label}",
        weighted=weighted,
        student_net=net,
        loss=term.loss,
        student=student,
        target=target,
        teachers=tuple(member.name for member in members),
        extra_kwargs=extra_kwargs,
        rows=rows,
        alignment=alignment,
        direct=alignment is None and rows is None and not extra_kwargs and complete and ignore_index is None,
        ignore_index=ignore_index,
        ignored=context.ignored_labels,
    )


def _tensor(output: TeacherOutput, tap: int | None) -> Tensor:
    return output.output if tap is None else output.features[tap]


def _members(teacher: Teacher) -> tuple[Teacher, ...]:
    return teacher.members if isinstance(teacher, Teachers) else (teacher,)


def _refer(name: str, taps: Taps, open_taps: tuple[TapLike, ...]) -> TensorRef:
    if taps is None:
        return TensorRef(((name, None),))
    return TensorRef(tuple((name, open_taps.index(tap)) for tap in taps_of(taps)), is_tuple=isinstance(taps, tuple))


def _target(match: Match, stage: Stage, taps: Mapping[str, tuple[TapLike, ...]]) -> TensorRef:
    teacher = match.teacher
    if isinstance(teacher, Peer):
        return _refer(teacher.name, match.target, taps[teacher.net.name])  # a peer is in training, as the student is
    if not isinstance(teacher, Teachers):
        return _refer(teacher.name, match.target, stage.teachers[teacher])
    if match.target is None:
        return TensorRef(tuple((net.name, None) for net in teacher.members), is_tuple=True)
    tapped = teachers_of(match).items()
    return TensorRef(tuple((net.name, stage.teachers[net].index(tap)) for net, (tap,) in tapped), is_tuple=True)


def _labelled_rows(
    loss: Loss, match: Match | None, extra_kwargs: frozenset[str], context: BuildContext
) -> LabelledRows | None:
    """Return how the inputs of a loss become rows that have a label, or None if it takes them as they are."""
    uses_labels = match is None or "labels" in extra_kwargs
    ignored = context.ignored_labels
    # Without its label, a sample can still be compared to a teacher. A loss on labels has its own ignore_index.
    of_samples = bool(ignored) and match is not None and uses_labels
    if not (is_per_position(loss) if context.position_dims else of_samples):
        return None
    return LabelledRows(
        position_dims=context.position_dims,
        ignored=ignored,
        task=context.task,
        uses_labels=uses_labels,
    )


def _align(
    net: Net[Any],
    match: Match | None,
    sides: tuple[TensorRef, TensorRef | None],
    extra_kwargs: frozenset[str],
    context: BuildContext,
    *,
    takes_rows: bool,
) -> ClassAlignment | None:
    """Return how the sides are reduced to the classes they share, or None if there is nothing to reduce."""
    if context.task == "regression":
        return None
    student, target = sides
    target_is_output = target is not None and target.is_output
    uses_teacher_outputs = target_is_output or "teacher_outputs" in extra_kwargs
    members = _members(match.teacher) if match is not None and uses_teacher_outputs else ()
    uses_labels = match is None or "labels" in extra_kwargs
    classes: dict[str, tuple[str, ...]] = {}
    for side in (*([net] if student.is_output else []), *members):
        classes[side.name] = tuple(getattr(side, "classes", None) or context.classes)
    if not classes:
        return None
    if uses_labels:
        classes[THE_DATA] = context.classes
    names = " and ".join(name if name == THE_DATA else repr(name) for name in classes)
    columns = shared_classes(tuple(classes.values()), f"net {names}" if len(classes) < 3 else f"nets {names}")
    if columns is None:
        return None
    if context.position_dims and uses_labels and not takes_rows:
        raise RecipeError(
            f"net {names} have different classes, of which a loss on whole outputs cannot leave out positions; use "
            "PerPosition(loss), or give the networks the classes of the data"
        )
    shared = dict(zip(classes, columns, strict=True))
    return ClassAlignment(
        student=shared[net.name] if student.is_output else None,
        targets=tuple(shared[member.name] for member in members),
        target_is_output=target_is_output,
        labels=shared.get(THE_DATA) if uses_labels else None,
        task=context.task,
    )
