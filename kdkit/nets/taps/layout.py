"""Infer which dimension of a feature has the channels, from the layers that compute it."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from kdkit.nets.elements import Element, default_element
from kdkit.nets.net import Net


class FeatureForm:
    """The form of the tensor that a tap captures. It is decided once, in the first forward pass.

    layer: describes the tapped module in messages. element: the element that is taken, after defaults are applied.
    channels_last: whether the channels are the last dimension; None until it is decided.
    notice: what is uncertain about it, as a notice of a run; "" if nothing is.
    """

    def __init__(self, module: nn.Module, element: Element, channels_last: bool | None) -> None:
        self.layer = type(module).__name__
        self.element = element
        self.channels_last = channels_last
        self.notice = ""
        self.is_decided = False
        self._modules: tuple[nn.Module, ...] = (module,)  # the tapped module, then those around it, innermost first

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """Return the form itself: a tap on a copied network, as in Ema, has the form of the tap on the original."""
        return self

    def locate(self, module: nn.Module, nets: Sequence[Net[Any]]) -> None:
        """Find the network that the tapped module belongs to."""
        self.layer = describe_layer(module, nets)
        for net in nets:
            path = path_of(module, net)
            if path is not None:
                names = path.split(".") if path else []
                outer = [".".join(names[:count]) for count in reversed(range(len(names)))]
                self._modules = (module, *(net.network.get_submodule(name) for name in outer))
                return

    def decide(self, value: Any, tensor: Tensor) -> None:
        """Decide the form of `tensor`, (batch, ..., ...), which was taken from `value`, the module's input or output.

        The channels are the dimension whose size is the width of a layer in the module: the last one for linear layers
        and layer norms, the second one for convolutions and batch norms. If the module has no such layers, for example
        an activation, the layers around it are used. Otherwise the channels are second.
        """
        self.is_decided = True
        # A function, or an element other than the first, may select anything, such as an attention map.
        selects_any = callable(self.element) or (isinstance(self.element, int) and self.element != 0)
        if self.element is None and not isinstance(value, Tensor):
            self.element = default_element(value)
        if self.channels_last is not None or tensor.is_nested or tensor.ndim < 3:  # (batch, channels) has one order
            return
        last, reason = self._infer(tensor.shape)
        if selects_any:
            reason = "its last dimension fits the layers, but element=... may select any tensor" if last else ""
            last = False
        self.channels_last = last
        if reason:
            self.notice = (
                f"the tap on {self.layer} takes {tuple(tensor.shape)} as (batch, channels, ...), which is not certain: "
                f"{reason}; pass Tap(..., channels_last=True) if the channels are last, or False"
            )

    def note_runs(self) -> None:
        """Note that the module ran again in one forward pass."""
        if not self.notice:
            self.notice = (
                f"{self.layer} runs several times in a forward pass, and the tap on it takes the tensor of its last "
                "run; Tap(..., call=0) takes its first, call=1 its second"
            )

    def _infer(self, shape: torch.Size) -> tuple[bool, str]:
        """Return whether the channels are last, and the reason if that is uncertain."""
        module, is_sequence = self._modules[0], len(shape) == 3
        if is_sequence and any(getattr(part, "batch_first", True) is False for part in module.modules()):
            return False, "with batch_first=False, the second dimension is the batch"
        all_widths = [_Widths(owner) for owner in self._modules]
        for depth, widths in enumerate(all_widths):  # 0 is the module itself
            is_second, is_last = shape[1] in widths.second, shape[-1] in widths.last
            if is_last and not is_second:
                # The layers around the module may be unrelated, such as the head of a convolutional network.
                if depth and widths.second:
                    return False, "its last dimension fits layers around it, but there are also convolutions"
                # In squeeze and excitation, linear layers have the channels of convolutions, which are second.
                outer = next((outer for outer in all_widths[depth:] if outer.second), None)
                is_leaf = not depth and not [*module.children()]
                if is_leaf or outer is None or shape[1] not in widths.last & outer.second:
                    return True, ""
                return False, "both dimensions fit its layers" if outer.has_tokens else ""
            if is_last and is_sequence:
                return False, "both dimensions fit its layers"
            if is_second or shape[1] in widths.last:
                return False, ""
            if widths.second:  # convolution outputs may be concatenated, so the channels may not be a layer's width
                # If the channels of a square map are last, the two dimensions before them are equal.
                may_be_last = shape[-1] in widths.second and (is_sequence or shape[1] == shape[2])
                return False, "its last dimension fits its layers" if may_be_last else ""
        return False, "no layer in it or around it has as many channels" if is_sequence else ""


def path_of(module: nn.Module, net: Net[Any]) -> str | None:
    """Return the path of a module in a network, such as "layer3.0"; None if it is not part of the network."""
    if not isinstance(net.module, nn.Module):
        return None
    return next((path for path, part in net.module.named_modules() if part is module), None)


def describe_layer(module: nn.Module, nets: Sequence[Net[Any]]) -> str:
    """Return the type of a module, with its path and the network's name if it belongs to one of these networks."""
    kind = type(module).__name__
    paths = ((net.name, path_of(module, net)) for net in nets)
    name, path = next(((name, path) for name, path in paths if path is not None), (None, ""))
    return " ".join([kind, *([repr(path)] if path else []), *([f"of net {name!r}"] if name is not None else [])])


class _Widths:
    """The widths of the layers in a module. second, last: of layers whose channels are in that dimension.

    has_tokens: whether there are layers that only occur in networks on tokens, such as layer norms.
    """

    def __init__(self, module: nn.Module) -> None:
        self.second: set[int] = set()
        tokens: set[int] = set()
        linear: set[int] = set()
        for part in module.modules():
            weight = getattr(part, "weight", None)
            if isinstance(part, _ConvNd):
                self.second.update((part.in_channels, part.out_channels))
            elif isinstance(part, _NormBase):
                self.second.add(part.num_features)
            elif isinstance(part, nn.GroupNorm):
                self.second.add(part.num_channels)
            elif isinstance(part, nn.LayerNorm | nn.RMSNorm):
                # LayerNorm2d of timm and torchvision takes maps with the channels second.
                widths = self.second if type(part).__name__.endswith("2d") else tokens
                widths.update(part.normalized_shape if len(part.normalized_shape) == 1 else ())
            elif isinstance(part, nn.RNNBase):
                tokens.add((part.proj_size or part.hidden_size) * (2 if part.bidirectional else 1))
            elif isinstance(part, nn.MultiheadAttention):
                tokens.add(part.embed_dim)
            elif isinstance(getattr(part, "out_features", None), int):  # linear layers, even with packed weights
                sizes = (part.out_features, getattr(part, "in_features", None))
                linear.update(size for size in sizes if isinstance(size, int))
            elif isinstance(weight, Tensor) and not is_lazy(weight) and weight.ndim == 2:  # embeddings, Conv1D of GPT-2
                linear.update(weight.shape)
        self.has_tokens = bool(tokens)
        # In a convolutional network, linear layers are heads, or squeeze-and-excitation layers.
        self.last = tokens | linear if tokens or not self.second else set()
