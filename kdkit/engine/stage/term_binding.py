"""Bind the terms of an objective to the networks and taps of a stage."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kdkit.engine.stage.class_alignment import ClassAlignment, Columns, shared_classes
from kdkit.engine.stage.labelled_rows import LabelledRows
from kdkit.engine.stage.terms import BoundTerm, TensorRef, uses_labels
from kdkit.errors import RecipeError
from kdkit.losses.base import (
    BuildableLoss,
    BuildContext,
    accepts_unknown,
    allows_any_classes,
    extra_kwargs_of,
    is_of_torch,
    is_per_position,
    is_sum,
    option_of,
)
from kdkit.losses.chunked import Chunked
from kdkit.nets.net import Net
from kdkit.nets.taps import ClassifierTap, HeadTap, TapLike
from kdkit.recipe.objective import Match, Taps, WeightedTerm, taps_of
from kdkit.recipe.recipe import Stage, teachers_of
from kdkit.teachers.base import Teacher
from kdkit.teachers.ema import Ema
from kdkit.teachers.ensemble import Teachers
from kdkit.teachers.peer import Peer

_Columns = tuple[Columns | None, Columns | None]  # of the student's and the target's outputs; None for all

_ALL_COLUMNS: _Columns = (None, None)
_THE_DATA = "the data"  # a name for the data among names of networks in error messages


class TermBinding:
    """Binds a term of the objective of `net`.

    taps: the taps on each network in training, by name; a tap has the same index as its feature in a TeacherOutput.
    members: the networks of a `Teachers`, or the teacher itself; empty for a term on labels.
    """

    def __init__(
        self,
        net: Net[Any],
        weighted: WeightedTerm,
        stage: Stage,
        taps: Mapping[str, tuple[TapLike, ...]],
        context: BuildContext,
    ) -> None:
        self.net, self.weighted, self.stage, self.context = net, weighted, stage, context
        self.loss = weighted.term.loss
        self.match = weighted.term if isinstance(weighted.term, Match) else None
        self.members: tuple[Teacher, ...] = ()
        if self.match is not None:
            teacher = self.match.teacher
            self.members = teacher.members if isinstance(teacher, Teachers) else (teacher,)
        self.extra_kwargs = extra_kwargs_of(self.loss)
        self.uses_labels = uses_labels(weighted.term)
        self.student = _refer(net.name, weighted.term.student, taps[net.name])
        self.target = None if self.match is None else self._target(self.match, taps)
        self.rows = self._rows()

    def bind(self) -> BoundTerm:
        """Return the bound term. Raises RecipeError if the sides share no class."""
        label, rows = self.weighted.term.label, self.rows
        alignment, columns = None, _ALL_COLUMNS
        if self.context.task != "regression" and not allows_any_classes(self.loss):
            alignment, columns = self._aligned()
        ignore_index = None  # of a loss on the labels; if rows are selected, all of them have a label
        if rows is None and self.match is None and self.context.ignored_labels:
            index = option_of(self.loss, "ignore_index")
            ignore_index = index if isinstance(index, int) else None
        # These teachers have an output for every sample; others may have none for some samples.
        complete = all(isinstance(member, Net | Peer | Ema) for member in self.members)
        return BoundTerm(
            label=label if len(self.stage.objectives) == 1 else f"{self.net.name}: {label}",
            weighted=self.weighted,
            student_net=self.net,
            loss=self.loss,
            student=self.student,
            target=self.target,
            teachers=tuple(member.name for member in self.members),
            extra_kwargs=self.extra_kwargs,
            rows=rows,
            alignment=alignment,
            columns=columns,
            direct=alignment is None and rows is None and not self.extra_kwargs and complete and ignore_index is None,
            ignore_index=ignore_index,
            ignored=self.context.ignored_labels,
            upcasts=is_of_torch(self.loss),
            is_sum=is_sum(self.loss),
        )

    def _target(self, match: Match, taps: Mapping[str, tuple[TapLike, ...]]) -> TensorRef:
        teacher = match.teacher
        if isinstance(teacher, Peer):  # its net is in training, like the student
            return _refer(teacher.name, match.target, taps[teacher.net.name])
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
        takes_labels = self.match is not None and self.uses_labels and not accepts_unknown(self.loss)
        of_samples = bool(context.ignored_labels) and takes_labels
        if not (is_per_position(self.loss) if context.position_dims else of_samples):
            return None
        return LabelledRows(
            position_dims=context.position_dims,
            ignored=context.ignored_labels,
            task=context.task,
            uses_labels=self.uses_labels,
        )

    def _aligned(self) -> tuple[ClassAlignment | None, _Columns]:
        """Return how the sides are reduced to their shared classes, and the columns of a Chunked loss."""
        context, sides = self.context, self._class_sides()
        if not sides.classes:
            return None, _ALL_COLUMNS
        nets = [repr(name) for name in sides.classes if name != _THE_DATA]
        names = " and ".join([*nets, _THE_DATA] if _THE_DATA in sides.classes else nets)
        names = f"nets {names}" if len(nets) > 1 else f"net {names}"
        columns = shared_classes(tuple(sides.classes.values()), names, context.classes)
        if columns is None:
            return None, _ALL_COLUMNS
        shared = dict(zip(sides.classes, columns, strict=True))
        labels = shared.get(_THE_DATA)
        if labels == tuple(range(len(context.classes))):
            labels = None  # every class is shared, so labels are unchanged, and no sample is dropped
        if context.position_dims and labels is not None and self.rows is None:
            raise RecipeError(
                f"{names} have different classes, but a loss on whole outputs cannot leave out the positions of "
                "other classes; use PerPosition(loss), or give the networks the classes of the data"
            )
        targets = tuple(shared[member.name] for member in sides.members)
        if isinstance(self.loss, Chunked):  # it selects the columns of the outputs that it computes itself
            of_labels = None
            if labels is not None:
                of_labels = ClassAlignment(
                    student=None, targets=(), target_is_output=False, labels=labels, task=context.task
                )
            return of_labels, (shared.get(self.net.name), targets[0] if targets else None)
        return ClassAlignment(
            student=shared.get(self.net.name),
            targets=targets,
            target_is_output=sides.target_is_output,
            labels=labels,
            task=context.task,
            student_head=sides.student_head,
            target_head=sides.target_head,
        ), _ALL_COLUMNS

    def _class_sides(self) -> "_ClassSides":
        """Return the sides with a column per class: outputs, labels, and a tapped side that may be a head."""
        context, term, target = self.context, self.weighted.term, self.target
        student_is_output = self.student.is_output or _gives_classes(self.net, term.student, context)
        target_is_output = target is not None and (
            target.is_output or (len(self.members) == 1 and _gives_classes(self.members[0], term.target, context))
        )
        members = self.members if target_is_output or "teacher_outputs" in self.extra_kwargs else ()
        outputs = (*([self.net] if student_is_output else []), *members)
        classes = {side.name: _classes_of(side, context) for side in outputs}
        if self.uses_labels and (classes or self.match is None):
            classes[_THE_DATA] = context.classes
        head = self._tapped_head(student_is_output=student_is_output, target_is_output=target_is_output)
        head_classes = () if head is None else _classes_of(head, context)
        if head is None or any(set(head_classes) != set(side) for side in classes.values()):
            return _ClassSides(classes, members, target_is_output)
        classes[head.name] = head_classes
        if head is self.net:
            return _ClassSides(classes, members, target_is_output, student_head=len(head_classes))
        return _ClassSides(classes, self.members, target_is_output=True, target_head=len(head_classes))

    def _tapped_head(self, *, student_is_output: bool, target_is_output: bool) -> Teacher | Net[Any] | None:
        """Return the net of a tapped side that may be its head, because the other side is outputs or labels.

        A head has the classes of its network if the other sides have the same classes, in any order.
        """
        if isinstance(self.loss, BuildableLoss):
            return None
        if not student_is_output:
            return self.net if (target_is_output or self.match is None) and not self.student.is_tuple else None
        is_single = self.target is not None and not self.target.is_tuple and len(self.members) == 1
        return self.members[0] if is_single and not target_is_output else None


class _ClassSides(NamedTuple):
    """The sides of a term that have a column per class.

    classes: of each side by name, and of the data if labels are used. members: the teachers whose outputs are compared.
    The other fields are those of `ClassAlignment`.
    """

    classes: dict[str, tuple[str, ...]]
    members: tuple[Teacher, ...]
    target_is_output: bool
    student_head: int | None = None
    target_head: int | None = None


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
