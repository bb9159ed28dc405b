"""Bind the terms of an objective to the networks and taps of a stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdkit.data.labels import is_ignored
from kdkit.engine.stage.class_alignment import ClassAlignment, Columns, shared_classes
from kdkit.engine.stage.positions import LabelledRows
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.errors import RecipeError
from kdkit.losses.base import BuildableLoss, BuildContext, Loss, allows_any_classes, extra_kwargs_of, is_per_position
from kdkit.losses.chunked import Chunked
from kdkit.losses.features import TensorOrTuple
from kdkit.nets.net import Net
from kdkit.nets.taps import ClassifierTap, HeadTap, TapLike
from kdkit.recipe.objective import Match, Taps, Term, Weighted, taps_of
from kdkit.recipe.recipe import Stage, teachers_of
from kdkit.teachers.base import Teacher, TeacherOutput, TeacherOutputs
from kdkit.teachers.ema import Ema
from kdkit.teachers.ensemble import Teachers
from kdkit.teachers.peer import Peer

THE_DATA = "the data"  # a name for the data among names of networks in error messages


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Points to one side of a term. entries: pairs of a network's name and a tap index, or None for its output.

    is_tuple: whether the side is a tuple of tensors, even if it has only one element.
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
        """Whether every tensor is a network output, which has a column per class, and not a feature."""
        return all(tap is None for _, tap in self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundTerm:
    """A term of an objective with the networks and taps that it compares.

    target: None if the labels are the target. teachers: the names of the matched networks. extra_kwargs: the keyword
    arguments of the loss, such as "labels". rows: selects the rows that have a label; None if the loss takes the inputs
    unchanged. alignment: None if both sides have the same classes.
    direct: whether the loss takes both sides unchanged: it has no extra arguments, every sample has a target, no rows
    are selected, and no classes are aligned.
    columns: the columns of the student's and the target's outputs that a `Chunked` loss compares; it computes them
    itself. None for all.
    ignore_index: the label that a loss on the labels ignores, if the data has such labels; None otherwise.
    ignored: all labels of the data that mean "no label"; `ignore_index` replaces them before the loss is called.
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
    columns: tuple[Columns | None, Columns | None]
    direct: bool
    ignore_index: int | None
    ignored: tuple[int, ...]

    @property
    def follows_progress(self) -> bool:
        """Whether its weight or its loss changes with the progress of the stage."""
        return "progress" in self.extra_kwargs or any(callable(factor) for factor in self.weighted.factors)

    def merge_ignored_labels(self, inputs: TermInputs) -> TermInputs:
        """Return the inputs with a single label for "no label", because a loss ignores only one."""
        if self.ignore_index is None or self.ignored == (self.ignore_index,):
            return inputs
        labels = inputs.labels
        # Selecting the other rows instead would wait for the device.
        return inputs._replace(labels=labels.masked_fill(is_ignored(labels, self.ignored), self.ignore_index))


def bind_term(
    net: Net[Any], weighted: Weighted, stage: Stage, taps: Mapping[str, tuple[TapLike, ...]], context: BuildContext
) -> BoundTerm:
    """Bind a term of the objective of `net`.

    taps: the taps on each network in training, by name; a tap has the same index as its feature in a TeacherOutput.
    Raises RecipeError if the sides share no class.
    """
    return _TermBinding(net, weighted, stage, taps, context).bind()


def uses_labels(term: Term) -> bool:
    """Whether the loss of a term takes the labels, as its target or as an extra argument."""
    return not isinstance(term, Match) or "labels" in extra_kwargs_of(term.loss)


class _TermBinding:
    """Binds one term. members: the networks of a `Teachers`, or the teacher itself; empty for a term on labels."""

    def __init__(
        self,
        net: Net[Any],
        weighted: Weighted,
        stage: Stage,
        taps: Mapping[str, tuple[TapLike, ...]],
        context: BuildContext,
    ) -> None:
        self.net, self.weighted, self.stage, self.taps, self.context = net, weighted, stage, taps, context
        self.loss = weighted.term.loss
        self.match = weighted.term if isinstance(weighted.term, Match) else None
        self.members: tuple[Teacher, ...] = ()
        if self.match is not None:
            teacher = self.match.teacher
            self.members = teacher.members if isinstance(teacher, Teachers) else (teacher,)
        self.extra_kwargs = extra_kwargs_of(self.loss)
        self.uses_labels = uses_labels(weighted.term)
        self.columns: tuple[Columns | None, Columns | None] = (None, None)

    def bind(self) -> BoundTerm:
        """Return the bound term."""
        label = self.weighted.term.label
        student = _refer(self.net.name, self.weighted.term.student, self.taps[self.net.name])
        target = None if self.match is None else self._target(self.match)
        rows = self._rows()
        alignment = None
        if not allows_any_classes(self.loss):
            alignment = self._alignment(student, target, takes_rows=rows is not None)
        ignore_index = self._ignore_index() if rows is None else None
        # These teachers have an output for every sample; others may have none for some samples.
        complete = all(isinstance(member, Net | Peer | Ema) for member in self.members)
        return BoundTerm(
            label=label if len(self.stage.objectives) == 1 else f"{self.net.name}: {label}",
            weighted=self.weighted,
            student_net=self.net,
            loss=self.loss,
            student=student,
            target=target,
            teachers=tuple(member.name for member in self.members),
            extra_kwargs=self.extra_kwargs,
            rows=rows,
            alignment=alignment,
            columns=self.columns,
            direct=alignment is None and rows is None and not self.extra_kwargs and complete and ignore_index is None,
            ignore_index=ignore_index,
            ignored=self.context.ignored_labels,
        )

    def _target(self, match: Match) -> TensorRef:
        teacher = match.teacher
        if isinstance(teacher, Peer):  # its net is in training, like the student
            return _refer(teacher.name, match.target, self.taps[teacher.net.name])
        if not isinstance(teacher, Teachers):
            return _refer(teacher.name, match.target, self.stage.teachers[teacher])
        if match.target is None:
            return TensorRef(tuple((net.name, None) for net in teacher.members), is_tuple=True)
        teachers, tapped = self.stage.teachers, teachers_of(match).items()
        return TensorRef(tuple((net.name, teachers[net].index(tap)) for net, (tap,) in tapped), is_tuple=True)

    def _rows(self) -> LabelledRows | None:
        """Return how the rows with a label are selected, or None if the loss takes the inputs unchanged."""
        context = self.context
        # A sample without a label can still be compared with a teacher. A loss on labels has its own ignore_index.
        of_samples = bool(context.ignored_labels) and self.match is not None and self.uses_labels
        if not (is_per_position(self.loss) if context.position_dims else of_samples):
            return None
        return LabelledRows(
            position_dims=context.position_dims,
            ignored=context.ignored_labels,
            task=context.task,
            uses_labels=self.uses_labels,
        )

    def _ignore_index(self) -> int | None:
        """Return the label that a loss on the labels ignores, or None if the data has no such labels."""
        index = getattr(self.loss, "ignore_index", None)
        return index if self.match is None and self.context.ignored_labels and isinstance(index, int) else None

    def _alignment(self, student: TensorRef, target: TensorRef | None, *, takes_rows: bool) -> ClassAlignment | None:
        """Return how the sides are reduced to their shared classes, or None if there is nothing to reduce."""
        context = self.context
        if context.task == "regression":
            return None
        term = self.weighted.term
        target_is_output = target is not None and (
            target.is_output
            or (len(self.members) == 1 and _gives_classes(self.members[0], getattr(term, "target", None), context))
        )
        uses_teacher_outputs = target_is_output or "teacher_outputs" in self.extra_kwargs
        members = self.members if uses_teacher_outputs else ()
        student_is_output = student.is_output or _gives_classes(self.net, term.student, context)
        sides = (*([self.net] if student_is_output else []), *members)
        classes = {side.name: _classes_of(side, context) for side in sides}
        if self.uses_labels and (classes or self.match is None):
            classes[THE_DATA] = context.classes
        # A tapped head has the classes of its network if the other sides have the same classes, in any order.
        is_head = False
        of_head: Teacher | Net[Any] = self.net
        if not isinstance(self.loss, BuildableLoss):
            if (target_is_output or self.match is None) and not student_is_output:
                is_head = not student.is_tuple
            elif target is not None and not target_is_output and student_is_output and len(self.members) == 1:
                is_head, of_head = not target.is_tuple, self.members[0]
        head_classes = _classes_of(of_head, context)
        is_head = is_head and all(set(head_classes) == set(side) for side in classes.values())
        if is_head:
            classes[of_head.name] = head_classes
            members = self.members if of_head is not self.net else members
        if not classes:
            return None
        names = " and ".join(name if name == THE_DATA else repr(name) for name in classes)
        description = f"net {names}" if len(classes) < 3 else f"nets {names}"
        columns = shared_classes(tuple(classes.values()), description, context.classes)
        if columns is None:
            return None
        shared = dict(zip(classes, columns, strict=True))
        labels = shared.get(THE_DATA)
        if labels == tuple(range(len(context.classes))):
            labels = None  # every class is shared, so labels are unchanged, and no sample is dropped
        if context.position_dims and labels is not None and not takes_rows:
            raise RecipeError(
                f"net {names} have different classes, but a loss on whole outputs cannot leave out the positions of "
                "other classes; use PerPosition(loss), or give the networks the classes of the data"
            )
        head = len(head_classes) if is_head else None
        is_target_head = is_head and of_head is not self.net
        if isinstance(self.loss, Chunked):  # it selects the columns of the outputs that it computes itself
            self.columns = (shared.get(self.net.name), shared[members[0].name] if members else None)
            if labels is None:
                return None
            return ClassAlignment(student=None, targets=(), target_is_output=False, labels=labels, task=context.task)
        return ClassAlignment(
            student=shared.get(self.net.name),
            targets=tuple(shared[member.name] for member in members),
            target_is_output=target_is_output or is_target_head,
            labels=labels,
            task=context.task,
            student_head=None if is_target_head else head,
            target_head=head if is_target_head else None,
        )


def _classes_of(side: Teacher | Net[Any], context: BuildContext) -> tuple[str, ...]:
    return tuple(getattr(side, "classes", None) or context.classes)


def _gives_classes(side: Teacher | Net[Any], taps: Taps, context: BuildContext) -> bool:
    """Whether a side has one output per class of its network: a HeadTap, or a ClassifierTap on its classifier."""
    is_classifier = isinstance(taps, ClassifierTap) and taps.outputs == len(_classes_of(side, context))
    return is_classifier or isinstance(taps, HeadTap)


def _refer(name: str, taps: Taps, open_taps: tuple[TapLike, ...]) -> TensorRef:
    if taps is None:
        return TensorRef(((name, None),))
    return TensorRef(tuple((name, open_taps.index(tap)) for tap in taps_of(taps)), is_tuple=isinstance(taps, tuple))


def _tensor(output: TeacherOutput, tap: int | None) -> Tensor:
    return output.output if tap is None else output.features[tap]
