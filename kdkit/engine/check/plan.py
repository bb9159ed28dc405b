"""The plan of a recipe: its stages, terms and problems."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from kdkit.engine.class_alignment import TermInputs
from kdkit.engine.terms import BoundTerm
from kdkit.errors import CheckError
from kdkit.losses import BuildContext
from kdkit.losses.features import TensorOrTuple
from kdkit.nets.net import Net
from kdkit.nets.taps import TapLike
from kdkit.recipe.objective import Match, taps_of
from kdkit.recipe.recipe import Stage, nets_of
from kdkit.teachers import Teachers


@dataclass(frozen=True, slots=True, kw_only=True)
class TermSummary:
    """A term as it will be computed: what meets what, in which shapes, and what is trained to bring them together."""

    label: str
    loss: str
    weight: tuple[float, float]
    student_net: str
    teacher: str | None
    student: str
    target: str
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An experiment as it would run, and every problem that stands in its way.

    comparisons: for each stage, its terms with their shapes; empty for a stage that could not be rehearsed.
    foreign: teachers of features alone, whose outputs are not about the data's classes; they cannot be scored.
    """

    stages: tuple[Stage, ...]
    comparisons: tuple[tuple[TermSummary, ...], ...]
    problems: tuple[str, ...]
    facts: BuildContext
    foreign: frozenset[Net[Any]] = frozenset()

    @property
    def nets(self) -> tuple[Net[Any], ...]:
        """Every net that teaches or learns."""
        return nets_of(self.stages)

    def require(self) -> None:
        """Raise CheckError if there is any problem."""
        if self.problems:
            raise CheckError(self.problems)


def compared(line: BoundTerm, given: TermInputs) -> TermSummary:
    """Return a term as it will be computed, from what it compared on a tiny batch."""
    term = line.weighted.term
    match = term if isinstance(term, Match) else None
    trained = line.loss.parameters() if isinstance(line.loss, nn.Module) else ()
    return TermSummary(
        label=line.label,
        loss=_said(line.loss),
        weight=(line.weighted.weight(0.0), line.weighted.weight(1.0)),
        student_net=line.student_net.name,
        teacher=None if match is None else match.teacher.name,
        student=_side(None if match is None else match.student, given.student, [line.student_net]),
        target=f"labels {_shape(given.labels)}"
        if match is None or given.target is None
        else _side(match.target, given.target, _nets(match.teacher)),
        parameters=sum(parameter.numel() for parameter in trained),
    )


def _side(taps: Any, value: TensorOrTuple, nets: Sequence[Net[Any]]) -> str:
    """Return what one side is, in words: outputs, or the tapped layers of these nets, with shapes."""
    if taps is None:
        return f"outputs {_shape(value)}"
    return f"{', '.join(_where(tap, nets) for tap in taps_of(taps))} {_shape(value)}"


def _nets(teacher: Any) -> tuple[Net[Any], ...]:
    """Return the nets whose layers may be tapped for a source: itself, its members, or the one it is made of."""
    if isinstance(teacher, Teachers):
        return teacher.members
    net = teacher if isinstance(teacher, Net) else getattr(teacher, "net", None)
    return (net,) if isinstance(net, Net) else ()


def _where(tap: TapLike, nets: Sequence[Net[Any]]) -> str:
    named = (named for net in nets for named in net.network.named_modules())
    name = next((name for name, module in named if module is tap.module), "?")
    at = getattr(tap, "at", type(tap).__name__)
    return name if at == "output" else f"{at} of {name}"


def _shape(side: TensorOrTuple) -> str:
    return " ".join(str(tuple(each.shape)) for each in side) if isinstance(side, tuple) else str(tuple(side.shape))


def _said(loss: Any) -> str:
    if isinstance(loss, nn.Module):
        options = loss.extra_repr()
        return f"{type(loss).__name__}({options})" if options else type(loss).__name__
    return getattr(loss, "__name__", None) or repr(loss)
