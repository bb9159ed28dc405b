"""What a term compares, in words, and what is wrong with it."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.classes import Compared, Sided
from kdkit.errors import KdkitError, first_line
from kdkit.goal import Match, taps_of
from kdkit.line import Line
from kdkit.losses import FromEach
from kdkit.modes import buffers_kept
from kdkit.net import Net
from kdkit.sources import Panel, Peer
from kdkit.taps import Tapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A term as it will be computed: what meets what, in which shapes, and what is trained to bring them together."""

    label: str
    loss: str
    weight: tuple[float, float]
    learner: str
    source: str | None
    student: str
    target: str
    parameters: int


def compared(line: Line, given: Compared) -> Comparison:
    """Return a term as it will be computed, from what it compared on a tiny batch."""
    term = line.weighted.term
    match = term if isinstance(term, Match) else None
    trained = line.loss.parameters() if isinstance(line.loss, nn.Module) else ()
    return Comparison(
        label=line.label,
        loss=_said(line.loss),
        weight=(line.weighted.weight(0.0), line.weighted.weight(1.0)),
        learner=line.learner.name,
        source=None if match is None else match.source.name,
        student=_side(None if match is None else match.student, given.student, [line.learner]),
        target=f"labels {_shape(given.labels)}"
        if match is None or given.target is None
        else _side(match.target, given.target, _nets(match.source)),
        parameters=sum(parameter.numel() for parameter in trained),
    )


def problem_of(line: Line, given: Compared, asked: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a term, or None. Its loss is computed twice, the second time beside the answer."""
    target = given.labels if given.target is None else given.target
    shapes = f"student {_shape(given.student)} and target {_shape(target)}"
    if line.shared is not None and not len(given.labels):
        return None
    memory = [line.loss] if isinstance(line.loss, nn.Module) else []
    try:
        with warnings.catch_warnings(record=True) as caught, buffers_kept(memory):
            warnings.simplefilter("always")
            value = line.loss(given.student, target, **asked)
            noisy = line.loss(_noisy(given.student), target, **asked)
    except KdkitError as error:
        return str(error)
    except Exception as error:
        one_alone = _of_panel(line) and not isinstance(line.loss, FromEach)
        hint = f"; a Panel gives a tuple, of which FromEach({_said(line.loss)}) takes each" if one_alone else ""
        return f"{shapes} cannot meet in {_said(line.loss)}: {first_line(error)}{hint}"
    broadcast = [str(warning.message) for warning in caught if "target size" in str(warning.message)]
    if broadcast:
        return f"{shapes} are of different shapes and would be broadcast; bring them together with a projector"
    if not isinstance(value, Tensor) or value.ndim:
        came = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        return f"{_said(line.loss)} gives {came} where a scalar was expected; reduce it, say with .mean()"
    if not value.requires_grad:
        return f"{_said(line.loss)} moves nothing: no gradient flows from it to net {line.learner.name!r}"
    if _of_itself(line) and not _moves(value, given.student):
        return f"{_said(line.loss)} moves nothing: net {line.learner.name!r} is compared with what it says itself"
    if not torch.isfinite(value):
        return f"{_said(line.loss)} is {value.item()} at the first step"
    if value == 0 and noisy == 0:
        return f"{_said(line.loss)} is constantly zero, whatever net {line.learner.name!r} says"
    return None


def _of_panel(line: Line) -> bool:
    term = line.weighted.term
    return isinstance(term, Match) and isinstance(term.source, Panel)


def _of_itself(line: Line) -> bool:
    term = line.weighted.term
    return isinstance(term, Match) and isinstance(term.source, Peer) and term.source.net is line.learner


def _moves(value: Tensor, student: Sided) -> bool:
    """Whether a loss has a slope at what the student says, but for rounding."""
    sides = [each for each in (student if isinstance(student, tuple) else (student,)) if each.requires_grad]
    slopes = torch.autograd.grad(value, sides, retain_graph=True, allow_unused=True) if sides else ()
    return any(slope is not None and slope.abs().max() > 1e-6 for slope in slopes)


def _noisy(side: Sided) -> Sided:
    if isinstance(side, tuple):
        return tuple(each + torch.randn_like(each) for each in side)
    return side + torch.randn_like(side)


def _side(taps: Any, value: Sided, nets: Sequence[Net[Any]]) -> str:
    """Return what one side is, in words: outputs, or the tapped layers of these nets, with shapes."""
    if taps is None:
        return f"outputs {_shape(value)}"
    return f"{', '.join(_where(tap, nets) for tap in taps_of(taps))} {_shape(value)}"


def _nets(source: Any) -> tuple[Net[Any], ...]:
    """Return the nets whose layers may be tapped for a source: itself, its members, or the one it is made of."""
    if isinstance(source, Panel):
        return source.members
    net = source if isinstance(source, Net) else getattr(source, "net", None)
    return (net,) if isinstance(net, Net) else ()


def _where(tap: Tapping, nets: Sequence[Net[Any]]) -> str:
    named = (named for net in nets for named in net.network.named_modules())
    name = next((name for name, module in named if module is tap.module), "?")
    at = getattr(tap, "at", type(tap).__name__)
    return name if at == "output" else f"{at} of {name}"


def _shape(side: Sided) -> str:
    return " ".join(str(tuple(each.shape)) for each in side) if isinstance(side, tuple) else str(tuple(side.shape))


def _said(loss: Any) -> str:
    if isinstance(loss, nn.Module):
        options = loss.extra_repr()
        return f"{type(loss).__name__}({options})" if options else type(loss).__name__
    return getattr(loss, "__name__", None) or repr(loss)
