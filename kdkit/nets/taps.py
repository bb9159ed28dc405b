"""Take a tensor out of a layer while a network runs, and leave the layer as it was."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.nets.views import Element, picked

Capture = Callable[[Any], None]
RemoveHook = Callable[[], None]


@runtime_checkable
class TapLike(Protocol):
    """Anything that can be put on a module to take a tensor out of it."""

    @property
    def module(self) -> nn.Module:
        """The module it sits on."""
        ...

    def attach(self, put: Capture) -> RemoveHook:
        """Call `put` with the tensor each time the module runs, until the returned function is called."""
        ...


@dataclass(frozen=True, slots=True)
class Tap:
    """What a module gives ("output") or is given ("input"), as (batch, channels, ...).

    The input of an activation is the pre-activation. element picks one tensor of several, by index, key or function.
    channels_last says that the tensor is (batch, ..., channels), as the tokens of a transformer are: the channels are
    moved to the second place. Of a module that runs several times in a forward pass, the last time counts.
    """

    module: nn.Module
    at: Literal["output", "input"] = "output"
    element: Element = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise RecipeError(
                f"a tap sits on a module, such as Tap(net.module.layer3); got a {type(self.module).__name__}"
            )
        if self.at not in ("output", "input"):
            raise RecipeError(f"a tap takes the 'output' or the 'input' of its module; got {self.at!r}")

    def attach(self, put: Capture) -> RemoveHook:
        """Put a hook on the module."""
        what = f"the {self.at} of {type(self.module).__name__}"

        def take(value: Any) -> None:
            tensor = picked(value, self.element, what)
            put(tensor.movedim(-1, 1) if self.channels_last and not tensor.is_nested else tensor)

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args if args else tuple(kwargs.values())
            if isinstance(self.element, str) and self.element in kwargs:
                take(kwargs)
            else:
                take(given[0] if len(given) == 1 and not isinstance(self.element, int) else given)

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            take(output)

        if self.at == "input":
            return self.module.register_forward_pre_hook(before, with_kwargs=True).remove
        return self.module.register_forward_hook(after).remove


@dataclass(frozen=True, slots=True)
class AttentionTap:
    """The attention map of one of timm's attention layers, (batch, heads, tokens, tokens), after its softmax.

    While the tap is open the layer computes its map instead of calling a fused kernel, which keeps it to itself.
    """

    module: nn.Module

    def __post_init__(self) -> None:
        if not isinstance(getattr(self.module, "attn_drop", None), nn.Module) or not hasattr(self.module, "fused_attn"):
            raise RecipeError(
                "an attention tap sits on a timm attention layer, such as vit.blocks[3].attn; "
                f"got a {type(self.module).__name__}"
            )

    def attach(self, put: Capture) -> RemoveHook:
        """Switch the fused kernel off and listen to what the attention's dropout is given."""
        layer: Any = self.module
        fused = layer.fused_attn
        layer.fused_attn = False
        detach = Tap(layer.attn_drop, "input").attach(put)

        def restore() -> None:
            detach()
            layer.fused_attn = fused

        return restore


def timm_tap(model: nn.Module, index: int) -> Tap:
    """Return a tap on a stage of a timm model, counted as its `feature_info` counts them; -1 is the last.

    It gives (batch, channels, height, width), of a transformer's tokens (batch, channels, tokens).
    """
    info: Any = getattr(model, "feature_info", None)
    if not info:
        raise RecipeError(f"{type(model).__name__} has no feature_info, so its stages are unknown; is it a timm model?")
    entries: Sequence[dict[str, Any]] = list(info)
    if not -len(entries) <= index < len(entries):
        raise RecipeError(f"{type(model).__name__} has stages 0 to {len(entries) - 1}; got {index}")
    channels_last = getattr(model, "output_fmt", "NCHW") != "NCHW"
    module = model.get_submodule(entries[index]["module"])
    return Tap(module, element=None if channels_last else _channels_second, channels_last=channels_last)


def _channels_second(feature: Tensor) -> Tensor:
    """Turn tokens (N, T, C), of which timm says nothing, into (N, C, T); maps (N, C, H, W) stay as they are."""
    return feature.movedim(-1, 1) if feature.ndim == 3 else feature


class OpenTaps:
    """Open taps: what each heard in the last forward pass. Closing leaves every module as it was.

    A tensor that the network changes in place after it was tapped is a different one by the time a loss sees it.
    `keep_copies` is called after a first pass and has such taps hand out copies from then on.
    """

    def __init__(self, taps: Iterable[TapLike]) -> None:
        self.taps = tuple(dict.fromkeys(taps))
        self._heard: dict[int, Tensor] = {}
        self._versions: dict[int, int] = {}
        self._copied: set[int] = set()
        self._watching = True
        self._detach: list[RemoveHook] = []
        try:
            for index, tap in enumerate(self.taps):
                self._detach.append(tap.attach(self._putter(index)))
        except BaseException:
            self.close()
            raise

    def __getitem__(self, tap: TapLike) -> Tensor:
        """Return what a tap heard. Raises RecipeError if its module did not run."""
        return self.captured(self.taps.index(tap))

    def captured(self, index: int) -> Tensor:
        """Return what the tap of this index heard. Raises RecipeError where that is nothing, or a packed tensor."""
        found = self._heard.get(index)
        if found is None:
            raise RecipeError(f"{self._name(index)} never fired: its module did not run in the forward pass")
        if found.is_nested:
            raise RecipeError(
                f"{self._name(index)} hears a nested tensor, whose positions no longer meet the student's; build the "
                "TransformerEncoder that packs it with enable_nested_tensor=False"
            )
        return found

    def take(self) -> tuple[Tensor, ...]:
        """Return what every tap heard, in order, and forget it: no feature outlives its step, and each begins alike."""
        if not self.taps:
            return ()
        features = tuple(self.captured(index) for index in range(len(self.taps)))
        self.clear()
        return features

    def unfired(self) -> list[TapLike]:
        """Return the taps that did not fire since the last `clear`."""
        return [tap for index, tap in enumerate(self.taps) if index not in self._heard]

    def clear(self) -> None:
        """Forget what was heard, before the next forward pass."""
        self._heard.clear()

    def copy_if_modified(self) -> None:
        """Hand out copies where the network changed a tapped tensor in place, after a pass that was not compiled."""
        for index, tensor in self._heard.items():
            if tensor._version != self._versions[index]:
                self._copied.add(index)
        self._watching = False  # versions cannot be read in a compiled pass

    def close(self) -> None:
        """Take every hook away again."""
        for detach in reversed(self._detach):
            detach()
        self._detach = []
        self.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _name(self, index: int) -> str:
        return f"the tap on {type(self.taps[index].module).__name__}"

    def _putter(self, index: int) -> Capture:
        def put(tensor: Tensor) -> None:
            if self._watching:
                self._versions[index] = tensor._version
            self._heard[index] = tensor.clone() if index in self._copied else tensor

        return put
