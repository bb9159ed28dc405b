"""Attach taps to the layers of a network, and hold the tensors that they capture while it runs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError, describe
from kdkit.nets.elements import Element
from kdkit.nets.net import Net
from kdkit.nets.taps.base import RemoveHook, Tap, TapLike
from kdkit.nets.taps.layout import describe_layer


@contextmanager
def tap(
    module: nn.Module | TapLike,
    at: Literal["output", "input"] = "output",
    *,
    element: Element = None,
    channels_last: bool | None = None,
) -> Iterator["Feature"]:
    """Capture the output or the input of a module in each forward pass inside the context, in any training loop.

        with kdkit.tap(student.layer3) as feature:
            outputs = student(inputs)
            loss = hint(feature.value, target)

    The arguments are those of `Tap`. channels_last is inferred from the layers in the module only. A tap, such as
    `AttentionTap(layer)`, may be passed instead of a module, without other arguments and without `call`, because a
    context does not know where a forward pass begins. The hook is removed at the end of the context.
    """
    if isinstance(module, nn.Module | str) or not isinstance(module, TapLike):
        module = Tap(module, at, element, channels_last)
    elif (at, element, channels_last) != ("output", None, None):
        raise RecipeError(f"kdkit.tap({module!r}) takes no other arguments; pass them to the tap")
    if getattr(module, "call", None) is not None:
        raise RecipeError(
            f"kdkit.tap({module!r}) cannot count runs, because it does not know where a forward pass begins; use the "
            "tap in a Match of a run or of a Distiller"
        )
    with OpenTaps([module]) as open_taps:
        open_taps.computes_heads = True
        yield Feature(open_taps)


class Feature:
    """The tensor of an open tap; see `tap`."""

    def __init__(self, open_taps: "OpenTaps") -> None:
        self._open_taps = open_taps

    def __repr__(self) -> str:
        return f"Feature({self._open_taps.taps[0]})"

    @property
    def value(self) -> Tensor:
        """The tensor of the last forward pass, (batch, channels, ...), with its graph.

        Raises RecipeError if the module did not run, or if the network changed the tensor in place afterwards.
        """
        tensor = self._open_taps.captured(0)
        if self._open_taps.is_modified(0):
            raise RecipeError(
                f"the tensor of {type(self._open_taps.taps[0].module).__name__} was changed in place after it was "
                "captured; tap the layer after it, or set inplace=False there"
            )
        return tensor


class OpenTaps:
    """Attached taps and the tensors that they captured in the last forward pass. `close` removes their hooks.

    The order of calls is: `copy_if_modified` once, after a first pass, then `run` for each batch, which is `clear`, the
    forward pass, and `take`. From `take` to the next `clear`, nothing is captured, because the backward pass may run
    layers again to recompute activations, and the network runs in validation.
    If the network modifies a captured tensor in place, the loss would get the modified values. After
    `copy_if_modified`, the taps on such tensors capture copies.
    captures: whether tensors are captured. computes_heads: whether heads with a `HeadTap` compute their outputs.
    nets: the networks that the taps are on, for error messages.
    """

    def __init__(self, taps: Iterable[TapLike], nets: Sequence[Net[Any]] = ()) -> None:
        self.taps = tuple(dict.fromkeys(taps))  # equal taps share a hook
        self._layers = [describe_layer(tap.module, nets) for tap in self.taps]
        # which run of its module a tap takes; None for the last one, as of a user-defined tap
        self._calls: list[int | None] = [getattr(tap, "call", None) for tap in self.taps]
        self._captured: dict[int, Tensor] = {}  # by the index of the tap, like all of the following
        self._runs: dict[int, int] = {}  # how often the module ran, of taps on one of its runs
        self._versions: dict[int, int] = {}
        self._copied: set[int] = set()
        self._fired: set[int] = set()  # taps that fired in the first pass
        self._repeated: set[int] = set()  # taps that fired several times in the first pass
        self._track_versions = True
        self.captures = True
        self.computes_heads = False
        self._remove_hooks: list[RemoveHook] = []
        try:
            for index, tap in enumerate(self.taps):
                locate = getattr(tap, "locate", None)  # kdkit's own taps have it
                if locate is not None:
                    locate(nets)
                remove_hook = tap.attach(Slot(self, index))
                if not callable(remove_hook):
                    getattr(remove_hook, "remove", lambda: None)()  # it may be the handle of the hook
                    raise RecipeError(
                        f"{type(tap).__name__}.attach() must return a function that removes its hook, such as "
                        f"handle.remove; got {describe(remove_hook)}"
                    )
                self._remove_hooks.append(remove_hook)
        except BaseException:
            self.close()  # remove the hooks of the taps before the one that failed
            raise

    def __getitem__(self, tap: TapLike) -> Tensor:
        """Return the tensor that a tap captured. Raises RecipeError if its module did not run."""
        return self.captured(self.taps.index(tap))

    def captured(self, index: int) -> Tensor:
        """Return the tensor of the tap at this index. Raises RecipeError if there is none, or if it is nested."""
        tensor = self._captured.get(index)
        name = f"the tap on {self._layers[index]}"
        if tensor is None and index in self._runs:
            raise RecipeError(
                f"{name} takes call={self._calls[index]}, but its module ran {self._runs[index]} times in the forward "
                "pass; the first run is call=0"
            )
        if tensor is None:
            raise RecipeError(f"{name} never fired: its module did not run in the forward pass")
        # In eval mode, TransformerEncoder packs padded batches into nested tensors without the padding positions.
        if tensor.is_nested:
            raise RecipeError(
                f"{name} captures a nested tensor, whose positions do not match the student's; create the "
                "TransformerEncoder that returns it with enable_nested_tensor=False"
            )
        return tensor

    def run(self, net: Net[Any], batch: Any, indices: Sequence[int] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run a network on a batch. Return its output and the tensors of all taps, or of those at these indices."""
        if not self.taps:  # a fast path: a step of a small network takes microseconds
            return net(batch), ()
        self.clear()
        return net(batch), self.take(indices)

    def take(self, indices: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Return the tensors of all taps, or of those at these indices, in order.

        All tensors are cleared, so that no feature outlives its step.
        """
        features = tuple(self.captured(index) for index in (range(len(self.taps)) if indices is None else indices))
        self.pause()
        return features

    def is_modified(self, index: int) -> bool:
        """Whether the tensor of the tap at this index was modified in place after it was captured."""
        version = self._versions.get(index)  # None for a copy, which is never modified
        return version is not None and self._captured[index]._version != version  # autograd counts modifications

    def unfired(self) -> list[TapLike]:
        """Return the taps that have captured nothing since the last `clear`."""
        return [tap for index, tap in enumerate(self.taps) if index not in self._captured]

    def clear(self) -> None:
        """Drop the captured tensors, before the next forward pass."""
        self._captured.clear()
        self._runs.clear()
        self.captures = True

    def begin_first_pass(self) -> None:
        """Start to record which taps fire, and which fire several times."""
        self._fired.clear()
        self._runs.clear()

    def pause(self) -> None:
        """Drop the captured tensors, and capture nothing until the next `clear`."""
        self._captured.clear()
        self.captures = False

    def copy_if_modified(self) -> None:
        """From now on, capture copies for taps whose captured tensor was modified in place. Call it after a first pass.

        Also records modules that ran several times. The first pass must not be compiled; compiled passes always copy.
        """
        for index in sorted(self._repeated):
            tap = self.taps[index]
            if isinstance(tap, Tap) and tap.call is None:
                tap.form.note_runs()
        self._copied.update(index for index in self._captured if self.is_modified(index))
        self._track_versions = False

    def capture(self, index: int, tensor: Tensor) -> None:
        """Capture the tensor of the tap at this index, unless paused."""
        if not self.captures or not self._is_tapped_run(index):
            return
        if torch.compiler.is_compiling():
            # Compiled code does not count modifications, and would return the modified tensor. If there are none, the
            # compiler removes the copy.
            self._captured[index] = tensor.clone()
            return
        if self._track_versions:
            self._versions[index] = tensor._version
            (self._repeated if index in self._fired else self._fired).add(index)
        self._captured[index] = tensor.clone() if index in self._copied else tensor

    def _is_tapped_run(self, index: int) -> bool:
        """Count a run of the module of a tap, and return whether the tap is on this run."""
        call = self._calls[index]
        if call is None:
            return True
        run = self._runs.get(index, 0)
        self._runs[index] = run + 1
        return run == call

    def close(self) -> None:
        """Remove all hooks and drop the captured tensors."""
        for remove_hook in reversed(self._remove_hooks):  # reversed: user-defined taps may restore an earlier state
            remove_hook()
        self._remove_hooks = []
        self.pause()  # compiled code may call the hooks until it is recompiled

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, such as of a network with open taps. It captures nothing until `clear`."""
        return {**vars(self), "_captured": {}, "captures": False}


@dataclass(frozen=True, slots=True)
class Slot:
    """Captures the tensors of one tap: an object, not a closure, so that networks with open taps can be copied."""

    open_taps: OpenTaps
    index: int

    @property
    def is_open(self) -> bool:
        """Whether tensors are captured now."""
        return self.open_taps.captures

    def __call__(self, tensor: Tensor) -> None:
        """Capture a tensor."""
        self.open_taps.capture(self.index, tensor)
