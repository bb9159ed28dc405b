"""What a term compares, in words, and what is wrong with it."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import KdkitError
from kdkit.goal import taps_of
from kdkit.lesson import Line, Side
from kdkit.modes import buffers_kept
from kdkit.net import Net
from kdkit.taps import Tapping

Sided = Tensor | tuple[Tensor, ...]
Sides = tuple[Sided, Sided]


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


def compared(line: Line, sides: Sides) -> Comparison:
    """Return a term as it will be computed, from what its two sides were on a tiny batch."""
    term, (student, target) = line.weighted.term, sides
    trained = line.loss.parameters() if isinstance(line.loss, nn.Module) else ()
    return Comparison(
        label=line.label,
        loss=_said(line.loss),
        weight=(line.weighted.weight(0.0), line.weighted.weight(1.0)),
        learner=line.learner.name,
        source=line.source,
        student=_side(line.student, getattr(term, "student", None), student, line.learner),
        target=_side(line.target, getattr(term, "target", None), target, getattr(term, "source", None)),
        parameters=sum(parameter.numel() for parameter in trained),
    )


def problem_of(line: Line, sides: Sides, asked: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a term, or None. Its loss is computed twice, the second time beside the answer."""
    shapes = f"student {_shape(sides[0])} and target {_shape(sides[1])}"
    if line.shared is not None and not len(sides[1]):
        return None
    memory = [line.loss] if isinstance(line.loss, nn.Module) else []
    try:
        with warnings.catch_warnings(record=True) as caught, buffers_kept(memory):
            warnings.simplefilter("always")
            value = line.loss(*sides, **asked)
            noisy = line.loss(_noisy(sides[0]), sides[1], **asked)
    except KdkitError as error:
        return str(error)
    except Exception as error:
        return f"{shapes} cannot meet in {_said(line.loss)}: {first_line(error)}"
    broadcast = [str(warning.message) for warning in caught if "target size" in str(warning.message)]
    if broadcast:
        return f"{shapes} are of different shapes and would be broadcast; bring them together with a projector"
    if not isinstance(value, Tensor) or value.ndim:
        given = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        return f"{_said(line.loss)} gives {given} where a scalar was expected; reduce it, say with .mean()"
    if not value.requires_grad:
        return f"{_said(line.loss)} moves nothing: no gradient flows from it to net {line.learner.name!r}"
    if not torch.isfinite(value):
        return f"{_said(line.loss)} is {value.item()} at the first step"
    if value == 0 and noisy == 0:
        return f"{_said(line.loss)} is constantly zero, whatever net {line.learner.name!r} says"
    return None


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its name."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _noisy(side: Sided) -> Sided:
    if isinstance(side, tuple):
        return tuple(each + torch.randn_like(each) for each in side)
    return side + torch.randn_like(side)


def _side(side: Side, taps: Any, value: Sided, net: Net[Any] | None) -> str:
    if net is None:
        return f"labels {_shape(value)}"
    if side.taps is None:
        return f"outputs {_shape(value)}"
    return f"{', '.join(_where(tap, net) for tap in taps_of(taps))} {_shape(value)}"


def _where(tap: Tapping, net: Net[Any]) -> str:
    name = next((name for name, module in net.network.named_modules() if module is tap.module), "?")
    at = getattr(tap, "at", type(tap).__name__)
    return name if at == "output" else f"{at} of {name}"


def _shape(side: Sided) -> str:
    return " ".join(str(tuple(each.shape)) for each in side) if isinstance(side, tuple) else str(tuple(side.shape))


def _said(loss: Any) -> str:
    if isinstance(loss, nn.Module):
        return type(loss).__name__
    return getattr(loss, "__name__", None) or repr(loss)
