"""A term made ready: what is compared to what, of whom, and on which classes."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdkit.engine.class_alignment import ClassAlignment, shared
from kdkit.losses import BuildContext, Loss, extra_kwargs_of
from kdkit.losses.features import TensorOrTuple
from kdkit.nets.net import Net
from kdkit.nets.taps import TapLike
from kdkit.recipe.objective import Match, Taps, Weighted, taps_of
from kdkit.recipe.recipe import Stage, teachers_of
from kdkit.teachers import Peer, TeacherOutput, TeacherOutputs, Teachers


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where one side of a term comes from: of whom, and which of its taps, or its outputs where that is None."""

    places: tuple[tuple[str, int | None], ...]
    several: bool = False

    def of(self, heard: TeacherOutputs) -> TensorOrTuple:
        """Return the tensor, or the tuple of them."""
        if self.several:
            return tuple(_found(heard[who], tap) for who, tap in self.places)
        (who, tap), *_ = self.places
        return _found(heard[who], tap)

    @property
    def outputs(self) -> bool:
        """Whether it is outputs, which are about classes, and not features."""
        return all(tap is None for _, tap in self.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundTerm:
    """A term made ready: what is compared to what, and what its loss asks for beside.

    target: None where the labels are the target. sources: who is matched, by name. plain: its loss takes the two sides
    as they are, with nothing to ask for beside, to fill in, or to cut down to shared classes.
    """

    label: str
    weighted: Weighted
    student_net: Net[Any]
    loss: Loss
    student: TensorRef
    target: TensorRef | None
    teachers: tuple[str, ...]
    asks: frozenset[str]
    shared: ClassAlignment | None
    plain: bool


def bind_term(
    net: Net[Any], weighted: Weighted, stage: Stage, open_taps: tuple[TapLike, ...], facts: BuildContext
) -> BoundTerm:
    """Make a term of a net's goal ready. listening: the taps that are open on the nets in training.

    Raises RecipeError where the sides share no class.
    """
    term = weighted.term
    match = term if isinstance(term, Match) else None
    student = _side(net.name, None if match is None else match.student, open_taps)
    target = None if match is None else _target(match, stage, open_taps)
    asks = extra_kwargs_of(term.loss)
    members = () if match is None else _members(match)
    cut = _shared(net, match, (student, target), asks, facts)
    return BoundTerm(
        label=term.label if len(stage.objectives) == 1 else f"{net.name}: {term.label}",
        weighted=weighted,
        student_net=net,
        loss=term.loss,
        student=student,
        target=target,
        teachers=tuple(each.name for each in members),
        asks=asks,
        shared=cut,
        plain=cut is None and not asks and all(isinstance(each, Net | Peer) for each in members),  # who know everything
    )


def _found(answer: TeacherOutput, tap: int | None) -> Tensor:
    return answer.output if tap is None else answer.features[tap]


def _side(who: str, taps: Taps, open_taps: tuple[TapLike, ...]) -> TensorRef:
    if taps is None:
        return TensorRef(((who, None),))
    return TensorRef(tuple((who, open_taps.index(tap)) for tap in taps_of(taps)), several=isinstance(taps, tuple))


def _target(match: Match, stage: Stage, open_taps: tuple[TapLike, ...]) -> TensorRef:
    if isinstance(match.teacher, Peer):
        return _side(match.teacher.name, match.target, open_taps)
    if not isinstance(match.teacher, Teachers):
        return _side(match.teacher.name, match.target, stage.teachers[match.teacher])
    if match.target is None:
        return TensorRef(tuple((net.name, None) for net in match.teacher.members), several=True)
    asked = teachers_of(match).items()
    return TensorRef(tuple((net.name, stage.teachers[net].index(tap)) for net, (tap,) in asked), several=True)


def _members(match: Match) -> tuple[Any, ...]:
    return match.teacher.members if isinstance(match.teacher, Teachers) else (match.teacher,)


def _shared(
    net: Net[Any],
    match: Match | None,
    sides: tuple[TensorRef, TensorRef | None],
    asks: frozenset[str],
    facts: BuildContext,
) -> ClassAlignment | None:
    """Return how a comparison is cut to the classes that all its sides share; None where there is nothing to cut."""
    if facts.task == "regression":
        return None
    student, target = sides
    outputs = target is not None and target.outputs
    members = _members(match) if match is not None and (outputs or "teacher_outputs" in asks) else ()
    about_labels = match is None or "labels" in asks
    names = [net] if student.outputs else []
    of = {each.name: tuple(getattr(each, "classes", None) or facts.classes) for each in (*names, *members)}
    if not of:
        return None
    if about_labels:
        of["the data"] = facts.classes
    what = " and ".join(name if name == "the data" else repr(name) for name in of)
    positions = shared(tuple(of.values()), f"net {what}" if len(of) < 3 else f"nets {what}")
    if positions is None:
        return None
    at = dict(zip(of, positions, strict=True))
    return ClassAlignment(
        student=at[net.name] if student.outputs else None,
        targets=tuple(at[each.name] for each in members),
        outputs=outputs,
        labels=at.get("the data") if about_labels else None,
        task=facts.task,
    )
