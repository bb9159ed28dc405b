"""Capture the attention map of a timm or transformers layer, which a fused kernel does not return."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.nets.elements import pick_tensor
from kdkit.nets.net import Net
from kdkit.nets.taps.base import Capture, RemoveHook, Tap
from kdkit.utils.overrides import Override


@dataclass(frozen=True, slots=True)
class AttentionTap:
    """The attention map of a timm or transformers layer, (batch, heads, tokens, tokens), after the softmax.

    While the tap is open, the layer computes the map explicitly instead of calling a fused kernel, which returns no
    map. transformers then uses "eager" attention in every layer that shares the layer's config, and in training the map
    is captured after dropout. For `torch.nn.MultiheadAttention`, use Tap(layer, element=1).
    `Masked` leaves out padding. The logarithm of a map equals the scores before the softmax, up to a constant per query
    that the softmax removes. It requires layers without attention dropout. call is that of `Tap`.
    """

    module: nn.Module
    call: int | None = None
    tap: Tap = field(init=False, compare=False, repr=False)  # captures the map

    def __post_init__(self) -> None:
        layer: Any = self.module
        if _attention_config(layer) is not None:
            # a layer returns its output and its map
            tap: Tap = _MapTap(layer, element=1, channels_last=False, call=self.call)
        elif isinstance(getattr(layer, "attn_drop", None), nn.Module) and hasattr(layer, "fused_attn"):
            # The input of this dropout is the map after the softmax.
            tap = Tap(layer.attn_drop, "input", channels_last=False, call=self.call)
        else:
            raise RecipeError(
                "an attention tap sits on an attention layer of timm or transformers, such as vit.blocks[3].attn or "
                f"bert.encoder.layer[3].attention; got a {type(layer).__name__}; if it returns its map as its second "
                "output, as DeBERTa does with output_attentions=True, pass Tap(layer, element=1)"
            )
        object.__setattr__(self, "tap", tap)

    def __repr__(self) -> str:
        return f"AttentionTap({type(self.module).__name__})"

    def locate(self, nets: Sequence[Net[Any]]) -> None:
        """Find the network that the module belongs to, for messages."""
        self.tap.locate(nets)

    def attach(self, capture: Capture) -> RemoveHook:
        """Disable the fused kernel, and capture the map."""
        config = _attention_config(self.module)
        owner: Any = self.module if config is None else config
        name, explicit = ("fused_attn", False) if config is None else ("_attn_implementation", "eager")
        override = Override(owner, name, explicit)
        remove_hook = self.tap.attach(capture)

        def remove() -> None:
            remove_hook()
            override.close()

        return remove


class _MapTap(Tap):
    """A tap on the map of a transformers layer, which may return something else in its place."""

    __slots__ = ()

    def _feature(self, value: Any) -> Tensor:
        """Return the map. Raises RecipeError in the first pass if the layer returns no map."""
        layer = self.form.layer
        tensor = pick_tensor(value, self.element, f"the output of {layer}")
        # A layer around the attention layer returns only its features. In T5, it returns the position bias before the
        # map, which is 0 for attention to the encoder.
        if not self.form.is_decided and (tensor.ndim != 4 or bool((tensor < 0).any()) or not bool(tensor.any())):
            raise RecipeError(
                f"{layer} returns no attention map, (batch, heads, tokens, tokens): its second output is "
                f"{tuple(tensor.shape)}; tap the attention layer in it, or use Tap(layer, element=...) and eager "
                "attention"
            )
        self.form.is_decided = True  # the order of its dimensions is known
        return tensor


def _attention_config(module: nn.Module) -> Any:
    """Return the config in which a transformers layer looks up its attention; None for other layers."""
    configs = (getattr(part, "config", None) for part in module.modules())
    return next((config for config in configs if hasattr(config, "_attn_implementation")), None)
