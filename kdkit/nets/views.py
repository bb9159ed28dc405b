"""Views turn a batch into the arguments of a network, so that a teacher and its student may see different inputs."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch, items_of, map_tensors
from kdkit.errors import RecipeError, describe
from kdkit.utils.validation import is_number, is_whole_number

Call = tuple[tuple[Any, ...], dict[str, Any]]
Element = int | str | Callable[[Any], Tensor] | None

# In this order: a model that returns logits may return the hidden state that they are computed from, too.
_USUAL_NAMES = ("logits", "last_hidden_state", "out")


@runtime_checkable
class View(Protocol):
    """Turns a batch into the arguments of a network. It is frozen and picklable, and `key` describes it completely.

    An optional method `describe(preparation)` returns the description of the inputs of the network, as values for JSON,
    from that of the inputs of the batch; see `Data.preparation`.
    """

    @property
    def key(self) -> str:
        """A text that differs between views that return different arguments."""
        ...

    def __call__(self, batch: Batch) -> Call:
        """Return the positional and the keyword arguments of the network."""
        ...


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs unchanged: a tuple or list are the arguments, a mapping the keywords, all else the only argument.

    only: the keys or positions of the inputs that the network gets, such as `Inputs(only=("words", "lengths"))` of a
    mapping, or `Inputs(only=(0,))` of a tuple; a single one is the only argument. All of them if None.
    dtype: of the floating-point inputs of a network whose weights have another one than the data, such as
    torch.bfloat16; None leaves them.
    """

    only: tuple[str | int, ...] | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        _validate_dtype(self.dtype)
        only = self.only
        is_tuple = isinstance(only, tuple) and only and all(isinstance(name, str | int) for name in only)
        if only is not None and not is_tuple:
            raise RecipeError(
                f"only must be a tuple of keys or positions, such as ('input_ids',) or (0,); got {only!r}"
            )

    @property
    def key(self) -> str:
        """The options as text."""
        options = [
            f"{name}={value}" for name, value in (("only", self.only), ("dtype", self.dtype)) if value is not None
        ]
        return ":".join(["inputs", ",".join(options)] if options else ["inputs"])

    def __call__(self, batch: Batch) -> Call:
        """Return the positional and the keyword arguments of the network."""
        inputs = _converted(batch.inputs, self.dtype)
        if isinstance(inputs, Tensor) and self.only is None:
            return (inputs,), {}
        if self.only is not None:
            inputs = self._select(inputs)
        if isinstance(inputs, Mapping):
            return (), {name: _own(item) for name, item in inputs.items()}
        if isinstance(inputs, (tuple, list)):
            return tuple(map(_own, inputs)), {}
        return (_own(inputs),), {}

    def _select(self, inputs: Any) -> Any:
        assert self.only is not None
        items = dict(items_of(inputs) or ())
        missing = [name for name in self.only if name not in items]
        if missing:
            got = ", ".join(map(repr, items)) or f"a {type(inputs).__name__}"
            raise RecipeError(f"Inputs(only=...) selects {missing[0]!r}, which the inputs lack; there are: {got}")
        if len(self.only) == 1:
            return (items[self.only[0]],)
        if all(isinstance(name, int) for name in self.only):
            return tuple(items[name] for name in self.only)
        return {name: items[name] for name in self.only}


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Images from 0 to 1, (batch, channels, height, width), normalised by channel and optionally resized.

    Images in uint8, which take a quarter of the memory until then, are divided by 255 first.
    size: the height and width that the network expects, reached by bilinear interpolation with anti-aliasing before
    normalisation; None keeps the size. dtype: that of the network, if it is not float32, such as torch.bfloat16.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        _validate_dtype(self.dtype)
        for name in ("mean", "std"):  # lists, as in configurations, and a number for all channels
            values = getattr(self, name)
            object.__setattr__(self, name, tuple(values) if isinstance(values, Iterable) else (values,))
        if self.size is not None:
            sizes = tuple(self.size) if isinstance(self.size, Sequence) else ()
            if len(sizes) != 2 or not all(is_whole_number(size) and size > 0 for size in sizes):
                raise RecipeError(f"the size of Images is (height, width), or None; got {self.size!r}")
            object.__setattr__(self, "size", sizes)
        are_numbers = all(map(is_number, (*self.mean, *self.std)))
        if not are_numbers or len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise RecipeError(
                f"Images needs as many standard deviations as means, all above 0; got mean={self.mean}, std={self.std}"
            )

    @classmethod
    def from_timm(cls, module: nn.Module, *, resize: bool = False) -> "Images":
        """Return the normalisation that a timm model was trained with; `resize` also resizes to its input size."""
        config = getattr(module, "pretrained_cfg", None)
        if not config:
            raise RecipeError(
                f"{type(module).__name__} has no pretrained_cfg with a normalisation; is it a timm model?"
            )
        size = tuple(config["input_size"][1:]) if resize else None  # input_size is (channels, height, width)
        return cls(mean=tuple(config["mean"]), std=tuple(config["std"]), size=size)

    @property
    def key(self) -> str:
        """All options as text."""
        dtype = "" if self.dtype is None else f",dtype={self.dtype}"
        return f"images:mean={self.mean},std={self.std},size={self.size}{dtype}"

    def describe(self, preparation: Mapping[str, Any]) -> dict[str, Any]:
        """Return a preparation with the range of the images and the steps of this view added."""
        steps: list[dict[str, Any]] = [*preparation.get("steps", ())]
        if self.size is not None:
            steps.append({"step": "resize", "size": list(self.size), "method": "bilinear", "antialias": True})
        steps.append({"step": "normalise_channels", "mean": list(self.mean), "std": list(self.std)})
        return {"kind": "images", "range": [0, 1], **preparation, "steps": steps}

    def notice(self, images: Any) -> str:
        """Return a notice if images are not in the range that this view takes; "" otherwise."""
        normalises = any(self.mean) or {*self.std} != {1.0}  # otherwise it only resizes
        if not normalises or not isinstance(images, Tensor) or not images.is_floating_point() or not images.numel():
            return ""
        least, most = (value.item() for value in images.aminmax())
        if least >= -0.01 and most <= 1.01:  # interpolation may go a little beyond
            return ""
        return (
            f"takes images from 0 to 1, and these are from {least:.3g} to {most:.3g}; normalise them once, by the view "
            "or in the data, and divide those up to 255 by it"
        )

    def __call__(self, batch: Batch) -> Call:
        """Return the normalised images as the only argument."""
        images = batch.inputs
        if not isinstance(images, Tensor):
            names = ", ".join(repr(name) for name, _ in items_of(images) or ())
            raise RecipeError(
                f"the view Images takes one tensor of images, and the inputs are a {type(images).__name__}"
                + (f" of {names}" if names else "")
                + "; let the data yield images alone, or call Images(...) in a view of your own, which selects them"
            )
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if self.size is not None and images.shape[-2:] != self.size:
            images = nn.functional.interpolate(images, self.size, mode="bilinear", antialias=True)
        mean, std = (_per_channel(values, images.dtype, images.device) for values in (self.mean, self.std))
        return (_converted((images - mean) / std, self.dtype),), {}


def _own(item: Any) -> Any:
    """Return a copy of an object, such as graphs, whose attributes a network may set: others get the same batch."""
    return copy.copy(item) if not isinstance(item, Tensor) and hasattr(item, "to") else item


def _converted(inputs: Any, dtype: torch.dtype | None) -> Any:
    """Return inputs whose floating-point tensors have this dtype; None leaves them as they are."""
    if dtype is None:
        return inputs
    return map_tensors(inputs, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _validate_dtype(dtype: object) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise RecipeError(
            f"the dtype of a view is one of floating point, such as torch.bfloat16, or None; got {dtype!r}"
        )


@lru_cache
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a value per channel, (1, channels, 1, 1). Cached, since a copy to a GPU waits for it."""
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)


def pick_tensor(value: Any, element: Element, source: str) -> Tensor:
    """Return one tensor of a module's output. Raises RecipeError if `element` selects none.

    element: an index, a key or attribute, or a function; see `default_element` for None. source: names the module in
    error messages.
    """
    if isinstance(value, Tensor) and not callable(element):  # some models return several tensors only in training
        return value
    if callable(element):
        picked = element(value)
    else:
        chosen = default_element(value) if element is None else element
        try:
            # a name is a key of a mapping, or an attribute of anything else, such as a namedtuple
            is_attribute = isinstance(chosen, str) and not isinstance(value, Mapping)
            picked = value if chosen is None else getattr(value, str(chosen)) if is_attribute else value[chosen]
        except (LookupError, TypeError, AttributeError):
            raise RecipeError(
                f"{source} gives {_describe(value)}, which has no element {element!r}{_advice(value, element)}"
            ) from None
    if isinstance(picked, Tensor):
        return picked
    if value is None:
        reason = ", but a tensor was expected; does it return its result?"
    elif isinstance(picked, np.ndarray):
        reason = ", but a tensor was expected; return torch.from_numpy(...).float()"
    elif element is None:
        reason = ", but one tensor was expected; select it with element=..., an index, a key or a function"
    elif callable(element):
        reason = f", of which element=... returns {_describe(picked)}; expected one tensor"
    else:
        reason = f", whose element {element!r} is {_describe(picked)}; expected one tensor{_advice(value, element)}"
    tensors = ", ".join(f"{key!r} {tuple(tensor.shape)}" for key, tensor in _tensors_of(value))
    listing = f"; its tensors are {tensors}" if tensors else ""
    raise RecipeError(f"{source} gives {_describe(value)}{reason}{listing}")


def default_element(value: Any) -> int | str | None:
    """Return the index or key of the tensor that is taken of a module's output if no element is chosen.

    It is the one that models of transformers and torchvision name `logits`, `last_hidden_state` or `out`, in this
    order, or else the only one of floating point. Scalars, such as a loss, nested values, such as a cache, and the map
    of an attention layer do not count. None if several tensors remain, or none.
    """
    for name in _USUAL_NAMES:
        item = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if isinstance(item, Tensor):
            return name
    tensors = [(key, item) for key, item in _tensors_of(value) if item.ndim and item.is_floating_point()]
    # An attention layer may also return its map, (batch, heads, tokens, tokens), next to (batch, tokens, channels), and
    # a layer of T5 its position biases, which may be one map for the whole batch.
    shape = tensors[0][1].shape if tensors else ()
    maps = ((1, shape[1]), (shape[0], shape[1])) if len(shape) == 3 else ()  # their batch, and their queries
    keys = [key for key, item in tensors if item.ndim < 4 or (item.shape[0], item.shape[2]) not in maps]
    return keys[0] if len(keys) == 1 else None


def _tensors_of(value: Any) -> list[tuple[Any, Tensor]]:
    """Return the tensors that are directly in a value, with the `element` that selects each."""
    items = zip(value._fields, value, strict=True) if hasattr(value, "_fields") else items_of(value) or ()
    return [(key, item) for key, item in items if isinstance(item, Tensor)]


def _advice(value: Any, element: Element) -> str:
    """Return what makes a model of transformers return an element that it leaves out by default."""
    if element == "loss":
        return "; models of transformers return it if the inputs have labels"
    if isinstance(value, tuple) and element == 1 and value[1:] in ((), (None,)):  # of an attention layer, without map
        return (
            "; fused attention computes no map: create the model with attn_implementation='eager', or call "
            "model.set_attn_implementation('eager')"
        )
    return ""


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value))}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def validate_element(element: object) -> None:
    """Raise RecipeError if an object selects no tensor."""
    if element is not None and not isinstance(element, int | str) and not callable(element):
        raise RecipeError(f"element must be an index, a key or attribute, or a function; got {element!r}")


def validate_view(view: object, net: str) -> None:
    """Raise RecipeError if an object is no view."""
    if isinstance(view, type) or not isinstance(view, View):
        raise RecipeError(
            f"the view of net {net!r} must be Inputs(only=(...)), Images(...), or an object of a class with a text "
            f"`key` and __call__(batch), which returns (args, kwargs); got {describe(view)}"
        )
