"""Attach taps to the layers of a network, and hold the tensors that they capture while it runs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch, modifications
from kdkit.errors import KdkitError, RecipeError, describe, describe_error
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
        open_taps.compute_heads(enabled=True)
        yield Feature(open_taps.slots[0])


class Feature:
    """The tensor of an open tap; see `tap`."""

    def __init__(self, slot: "Slot") -> None:
        self._slot = slot

    def __repr__(self) -> str:
        return f"Feature({self._slot.tap})"

    @property
    def value(self) -> Tensor:
        """The tensor of the last forward pass, (batch, channels, ...), with its graph.

        Raises RecipeError after the context, if the module did not run, or if the network changed the tensor in place.
        """
        if not self._slot.is_open:
            raise RecipeError(
                f"the tensor of {type(self._slot.tap.module).__name__} is dropped at the end of the context of "
                "kdkit.tap; read feature.value inside it"
            )
        tensor = self._slot.captured()
        if self._slot.is_modified:
            raise RecipeError(
                f"the tensor of {type(self._slot.tap.module).__name__} was changed in place after it was captured; tap "
                "the layer after it, or set inplace=False there"
            )
        return tensor


class OpenTaps:
    """Attached taps and the tensors that they captured in the last forward pass. `close` removes their hooks.

    The order of calls is: `copy_if_modified` once, after a first pass, then `run` for each batch, which calls
    `begin_pass`, runs the network, and calls `take`. From `take` to the next `begin_pass`, nothing is captured, because
    the backward pass may run layers again to recompute activations, and the network runs in validation.
    nets: the networks that the taps are on, for error messages.
    """

    def __init__(self, taps: Iterable[TapLike], nets: Sequence[Net[Any]] = ()) -> None:
        self.taps = tuple(dict.fromkeys(taps))  # equal taps share a hook
        self.slots = tuple(Slot(tap, describe_layer(tap.module, nets)) for tap in self.taps)
        self._remove_hooks: list[RemoveHook] = []
        try:
            for slot in self.slots:
                locate = getattr(slot.tap, "locate", None)  # kdkit's own taps have it
                if locate is not None:
                    locate(nets)
                try:
                    remove_hook = slot.tap.attach(slot)
                except KdkitError:
                    raise
                except Exception as error:  # a user-defined tap may raise anything
                    raise RecipeError(f"{type(slot.tap).__name__}.attach() raises {describe_error(error)}") from error
                if not callable(remove_hook):
                    getattr(remove_hook, "remove", lambda: None)()  # it may be the handle of the hook
                    raise RecipeError(
                        f"{type(slot.tap).__name__}.attach() must return a function that removes its hook, such as "
                        f"handle.remove; got {describe(remove_hook)}"
                    )
                self._remove_hooks.append(remove_hook)
        except BaseException:
            self.close()  # remove the hooks of the taps before the one that failed
            raise

    def __getitem__(self, tap: TapLike) -> Tensor:
        """Return the tensor that a tap captured. Raises RecipeError if its module did not run."""
        return self.slots[self.taps.index(tap)].captured()

    def run(
        self, net: Net[Any], batch: Batch, slots: Sequence["Slot"] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run a network on a batch. Return its output and the tensors of these slots; None takes all."""
        if not self.slots:  # a fast path: a step of a small network takes microseconds
            return net(batch), ()
        self.begin_pass()
        return net(batch), self.take(slots)

    def take(self, slots: Sequence["Slot"] | None = None) -> tuple[Tensor, ...]:
        """Return the tensors of these slots, or of all, in order.

        All tensors are cleared, so that no feature outlives its step.
        """
        features = tuple([slot.captured() for slot in (self.slots if slots is None else slots)])
        self.pause()
        return features

    def unfired(self) -> list[TapLike]:
        """Return the taps that have captured nothing since the last `begin_pass`."""
        return [slot.tap for slot in self.slots if slot.tensor is None]

    def begin_pass(self) -> None:
        """Drop the captured tensors, and capture those of the next forward pass."""
        for slot in self.slots:
            slot.tensor, slot.runs, slot.is_open = None, 0, True

    def pause(self) -> None:
        """Drop the captured tensors, and capture nothing until the next `begin_pass`."""
        for slot in self.slots:
            slot.tensor, slot.is_open = None, False

    def reset_fired(self) -> None:
        """Forget which taps have fired, before a first pass, which records those that fire, and fire several times."""
        for slot in self.slots:
            slot.runs, slot.has_fired = 0, False

    def copy_if_modified(self) -> None:
        """From now on, capture copies for taps whose captured tensor was modified in place. Call it after a first pass.

        Otherwise the loss would get the modified values. Also records modules that ran several times. The first pass
        must not be compiled; compiled passes always copy.
        """
        for slot in self.slots:
            slot.end_first_pass()

    def compute_heads(self, *, enabled: bool) -> None:
        """Choose whether heads with a `HeadTap` compute their outputs; by default, they are skipped."""
        for slot in self.slots:
            slot.computes_head = enabled

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


class Slot:
    """The tensor that one tap captured in the last forward pass. The hook of the tap calls it with the tensor.

    layer: the tapped layer in messages. tensor: None if nothing was captured. is_open: whether tensors are captured.
    computes_head: whether a head with a `HeadTap` computes its outputs. runs: how often the module ran since the last
    `begin_pass`, counted for a tap on one of its runs. has_fired: whether a tensor was captured in the first pass.
    It is an object, not a closure, so that networks with open taps can be copied and pickled.
    """

    def __init__(self, tap: TapLike, layer: str) -> None:
        self.tap, self.layer = tap, layer
        self.tensor: Tensor | None = None
        self.is_open, self.computes_head = True, False
        self.runs, self.has_fired = 0, False
        # which run of its module the tap takes; None for the last one, as of a user-defined tap
        self._call: int | None = getattr(tap, "call", None)
        self._in_first_pass, self._fired_again, self._copies = True, False, False
        self._modifications: int | None = None  # of the captured tensor; None if they are not counted

    def __call__(self, tensor: Tensor) -> None:
        """Capture a tensor, if the slot is open and the tap is on this run of the module.

        Raises RecipeError in the first pass if a user-defined tap captures something else.
        """
        if not self.is_open:
            return
        if self._call is not None:
            self.runs += 1
            if self.runs != self._call + 1:
                return
        if torch.compiler.is_compiling():
            # Compiled code does not count modifications, and would return the modified tensor. If there are none, the
            # compiler removes the copy.
            self.tensor = tensor.clone()
            return
        if self._in_first_pass:
            if not isinstance(tensor, Tensor):
                name, got = type(self.tap).__name__, type(tensor).__name__
                raise RecipeError(f"the tap on {self.layer} must capture a tensor; {name} passes a {got}")
            self._modifications = modifications(tensor)
            self._copies |= self._modifications is None
            self._fired_again |= self.has_fired
            self.has_fired = True
        self.tensor = tensor.clone() if self._copies else tensor

    def captured(self) -> Tensor:
        """Return the captured tensor. Raises RecipeError if there is none, or if it is nested."""
        tensor, name = self.tensor, f"the tap on {self.layer}"
        if tensor is None and self.runs:
            raise RecipeError(
                f"{name} takes call={self._call}, but its module ran {self.runs} times in the forward pass; the first "
                "run is call=0"
            )
        if tensor is None:
            raise RecipeError(
                f"{name} never fired: its module did not run in the forward pass; if it was replaced in the network, "
                "tap the new module; if the network skips layers at random (LayerDrop), turn that off, such as by "
                "config.layerdrop = 0"
            )
        # In eval mode, TransformerEncoder packs padded batches into nested tensors without the padding positions.
        if tensor.is_nested:
            raise RecipeError(
                f"{name} captures a nested tensor, whose positions do not match the student's; create the "
                "TransformerEncoder that returns it with enable_nested_tensor=False"
            )
        return tensor

    @property
    def is_modified(self) -> bool:
        """Whether the tensor was modified in place after it was captured in the first pass."""
        count = self._modifications
        return self.tensor is not None and count is not None and modifications(self.tensor) != count

    def end_first_pass(self) -> None:
        """Capture copies from now on if the tensor was modified, and note if the module ran several times."""
        self._copies |= self.is_modified
        self._in_first_pass = False
        if self._fired_again and isinstance(self.tap, Tap) and self._call is None:
            self.tap.form.note_runs()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, such as of a network with open taps. It captures nothing until `begin_pass`."""
        return {**vars(self), "tensor": None, "is_open": False}
