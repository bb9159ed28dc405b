"""Capture the input of a network's head, and skip the head, whose outputs may be too large to fit in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.nets.net import Net
from kdkit.nets.taps.base import Capture, RemoveHook, Tap
from kdkit.nets.taps.open_taps import Slot


@dataclass(frozen=True, slots=True)
class HeadTap:
    """The input of a network's head, as (batch, channels, *positions), for a loss in `kdkit.losses.Chunked`.

    module: the head, which is the last layer and computes the outputs of the network, such as `model.lm_head`. In a
    training step the head is skipped: the outputs of the network, (batch, classes, *positions), are NaN, in a tensor
    that takes no memory, and no term can use them. Outside of training steps, such as in validation, they are computed.
    """

    module: nn.Module
    tap: Tap = field(init=False, compare=False, repr=False)  # captures the input

    def __post_init__(self) -> None:
        # A head maps the last dimension.
        object.__setattr__(self, "tap", Tap(self.module, "input", channels_last=True))

    def __repr__(self) -> str:
        return f"HeadTap({type(self.module).__name__})"

    def locate(self, nets: Sequence[Net[Any]]) -> None:
        """Find the network that the module belongs to, for messages."""
        self.tap.locate(nets)

    def attach(self, capture: Capture) -> RemoveHook:
        """Capture the input of the head, and pass an empty input to it."""
        if not isinstance(capture, Slot):
            raise RecipeError("a HeadTap must be part of a Match or a Truth, whose loss computes the head's outputs")
        hook = _HeadHook(self.tap, capture)
        handles = (
            self.module.register_forward_pre_hook(hook.leave_out, with_kwargs=True),
            self.module.register_forward_hook(hook.replace),
        )

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove


def left_out(scalar: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a placeholder for outputs that were skipped: NaN, in a tensor that takes no memory, in scalar's graph."""
    return (scalar + torch.nan).expand(*shape)


def is_left_out(outputs: Tensor) -> bool:
    """Return whether outputs, (batch, classes, ...), are the placeholder of a HeadTap."""
    return outputs.ndim > 1 and not any(outputs.stride()) and bool(outputs[(0,) * outputs.ndim].isnan())


class _HeadHook:
    """The hooks of a HeadTap: an object, not closures, so that a network with open taps can be copied and pickled."""

    def __init__(self, tap: Tap, slot: Slot) -> None:
        self.tap, self.slot = tap, slot
        self.rows: torch.Size | None = None  # (batch, *positions) of the skipped outputs

    def leave_out(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Capture the input of the head, and return an empty input in its place."""
        self.rows = None
        if not self.slot.is_open:
            return None
        inputs = (*args, *kwargs.values())
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise RecipeError(
                f"a HeadTap needs a layer with one input, a tensor (batch, ..., channels); {self.tap.form.layer} gets "
                f"{len(inputs)}"
            )
        hidden = inputs[0]
        self.slot(hidden.movedim(-1, 1))
        if self.slot.computes_head:
            return None
        self.rows = hidden.shape[:-1]
        empty = hidden.narrow(-2, 0, 0)
        return ((empty,), {}) if args else ((), dict.fromkeys(kwargs, empty))

    def replace(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Return the placeholder, in the graph of the output because `fully_shard` has hooks there."""
        return None if self.rows is None else left_out(output.sum(), (*self.rows, output.shape[-1]))
