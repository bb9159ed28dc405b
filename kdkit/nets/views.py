"""Views turn a batch into the arguments of a network, so that teachers and students may get different inputs."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch, has_objects, items_of, map_tensors
from kdkit.errors import RecipeError, describe
from kdkit.utils.validation import is_number, is_whole_number

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


@runtime_checkable
class View(Protocol):
    """Turns a batch into the arguments of a network. A view must be immutable and picklable, with a complete `key`.

    An optional method `describe(preparation)` takes the description of the batch's inputs, see `Data.preparation`, and
    returns the description of the network's inputs, as JSON values. It raises a RecipeError, which a check reports, if
    the view is for other inputs.
    """

    @property
    def key(self) -> str:
        """A text that differs between views that return different arguments."""
        ...

    def __call__(self, batch: Batch) -> Call:
        """Return the positional and keyword arguments of the network."""
        ...


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs unchanged, as the arguments of the network.

    The items of a tuple or list are positional arguments, those of a mapping are keyword arguments, and any other input
    is the only argument.
    only: the keys or positions of the inputs that the network gets, such as `Inputs(only=("words", "lengths"))` for a
    mapping, or `Inputs(only=(0,))` for a tuple; for another object the names of its attributes, such as
    `Inputs(only=("x", "edge_index"))` for graphs. A single one becomes the only argument. None selects all inputs.
    dtype: the dtype to which floating-point inputs are converted if the network's weights differ from the data, such as
    torch.bfloat16; None keeps the dtype of the data.
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
        options = {"only": self.only, "dtype": self.dtype}
        chosen = ",".join(f"{name}={value}" for name, value in options.items() if value is not None)
        return f"inputs:{chosen}" if chosen else "inputs"

    def __call__(self, batch: Batch) -> Call:
        """Return the positional and keyword arguments of the network."""
        inputs = _converted(batch.inputs if self.only is None else self._select(batch.inputs), self.dtype)
        if isinstance(inputs, Tensor):
            return (inputs,), {}
        if isinstance(inputs, Mapping):
            return (), {name: _own(item) for name, item in inputs.items()}
        if isinstance(inputs, (tuple, list)):
            return tuple(map(_own, inputs)), {}
        return (_own(inputs),), {}

    def _select(self, inputs: Any) -> Any:
        assert self.only is not None
        items = dict(items_of(inputs) or ())
        got = ", ".join(map(repr, items)) or f"a {type(inputs).__name__}"
        if has_objects(inputs) and not items:
            items = {name: getattr(inputs, str(name)) for name in self.only if hasattr(inputs, str(name))}
        missing = [name for name in self.only if name not in items]
        if missing:
            raise RecipeError(f"only=... selects {missing[0]!r}, which the inputs lack; there are: {got}")
        if len(self.only) == 1:
            return (items[self.only[0]],)
        if all(isinstance(name, int) for name in self.only):
            return tuple(items[name] for name in self.only)
        return {name: items[name] for name in self.only}


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Images with values from 0 to 1, (batch, channels, height, width), normalised by channel and optionally resized.

    Videos are (batch, channels, time, height, width), and each of their frames is an image. Images of uint8, which take
    a quarter of the memory, are divided by 255 first.
    only: the key or position of the images, such as "image" or 0, if the inputs of the data are a mapping or a tuple;
    None if the images are the only input.
    channels_last: whether the images of the data are (batch, height, width, channels), as in NumPy and OpenCV, and
    videos (batch, time, height, width, channels).
    size: the height and width that the network expects. Images are resized by bilinear interpolation with anti-aliasing
    before they are normalised; None keeps their size. dtype: the network's dtype, such as torch.bfloat16, if it is not
    float32.
    """

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    size: Sequence[int] | None = None
    dtype: torch.dtype | None = None
    only: str | int | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        _validate_dtype(self.dtype)
        if not isinstance(self.only, str | int | None):
            raise RecipeError(
                f"the option only of Images must be a key or a position, such as 'image'; got {self.only!r}"
            )
        for name in ("mean", "std"):  # may be lists, as in configurations, or a number for all channels
            values = getattr(self, name)
            object.__setattr__(self, name, tuple(values) if isinstance(values, Iterable) else (values,))
        if self.size is not None:
            sizes = tuple(self.size) if isinstance(self.size, Sequence) else ()
            if len(sizes) != 2 or not all(is_whole_number(size) and size > 0 for size in sizes):
                raise RecipeError(f"the size of Images must be (height, width) or None; got {self.size!r}")
            object.__setattr__(self, "size", sizes)
        are_numbers = all(map(is_number, (*self.mean, *self.std)))
        if not are_numbers or len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise RecipeError(
                f"Images needs as many standard deviations as means, all above 0; got mean={self.mean}, std={self.std}"
            )

    @classmethod
    def from_timm(
        cls, module: nn.Module, *, resize: bool = False, only: str | int | None = None, channels_last: bool = False
    ) -> "Images":
        """Return the normalisation that a timm model was trained with. With `resize`, also resize to its input size.

        only, channels_last: the fields of the view.
        """
        config = getattr(module, "pretrained_cfg", None)
        if not config:
            raise RecipeError(
                f"{type(module).__name__} has no pretrained_cfg with a normalisation; is it a timm model?"
            )
        size = tuple(config["input_size"][1:]) if resize else None  # input_size is (channels, height, width)
        mean, std = tuple(config["mean"]), tuple(config["std"])
        return cls(mean=mean, std=std, size=size, only=only, channels_last=channels_last)

    @property
    def key(self) -> str:
        """All options as text."""
        options = {"dtype": self.dtype, "only": self.only, "channels_last": self.channels_last or None}
        chosen = "".join(f",{name}={value!r}" for name, value in options.items() if value is not None)
        return f"images:mean={self.mean},std={self.std},size={self.size}{chosen}"

    def describe(self, preparation: Mapping[str, Any]) -> dict[str, Any]:
        """Return the preparation with the range of the images and the steps of this view."""
        steps: list[dict[str, Any]] = [*preparation.get("steps", ())]
        if self.size is not None:
            steps.append({"step": "resize", "size": list(self.size), "method": "bilinear", "antialias": True})
        steps.append({"step": "normalise_channels", "mean": list(self.mean), "std": list(self.std)})
        return {"kind": "images", "range": [0, 1], **preparation, "steps": steps}

    def notice(self, inputs: Any) -> str:
        """Return a notice if the images are not in the range that this view takes; "" otherwise."""
        images = self._select(inputs)
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

    def _select(self, inputs: Any) -> Any:
        return inputs if self.only is None else Inputs(only=(self.only,))._select(inputs)[0]

    def __call__(self, batch: Batch) -> Call:
        """Return the normalised images as the only argument."""
        images = self._select(batch.inputs)
        if not isinstance(images, Tensor):
            names = [repr(name) for name, _ in items_of(images) or ()]
            raise RecipeError(
                f"the view Images takes one tensor of images, but the inputs are a {type(images).__name__}"
                + (f" of {', '.join(names)}; select it, for example with Images(only={names[0]})" if names else "")
            )
        count, shape = len(self.mean), tuple(images.shape)
        if self.channels_last:
            images = images.movedim(-1, 1)
        if count > 1 and images.shape[1] not in (1, count):
            positions = "time, height, width" if len(shape) == 5 else "height, width"
            form = f"(batch, {positions}, {count})" if self.channels_last else f"(batch, {count}, {positions})"
            advice = "; pass Images(channels_last=True)" if shape[-1] == count and not self.channels_last else ""
            if len(shape) == 5 and shape[2] == count:
                advice = "; move the channels before the time in the data: video.movedim(1, 0)"
            raise RecipeError(f"the view Images has {count} means, so it takes images {form}; got {shape}{advice}")
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise RecipeError(
                f"the view Images takes floats from 0 to 1, or uint8, which it divides by 255; got {images.dtype}; "
                "convert the images in the data"
            )
        if self.size is not None and images.shape[-2:] != self.size:
            images = _resized(images, self.size)
        channels = (1, -1, *(1,) * (images.ndim - 2))
        mean, std = (_tensor(values, images.dtype, images.device).view(channels) for values in (self.mean, self.std))
        return (_converted((images - mean) / std, self.dtype),), {}


def _own(item: Any) -> Any:
    """Return a copy of an object, such as graphs, because a network may set its attributes, and others get it too."""
    return copy.copy(item) if not isinstance(item, Tensor) and hasattr(item, "to") else item


def _converted(inputs: Any, dtype: torch.dtype | None) -> Any:
    """Convert the floating-point tensors of inputs to this dtype; None keeps them."""
    if dtype is None:
        return inputs
    return map_tensors(inputs, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _validate_dtype(dtype: object) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise RecipeError(
            f"the dtype of a view must be a floating-point dtype, such as torch.bfloat16, or None; got {dtype!r}"
        )


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """Return images, or the frames of videos, (batch, channels, time, height, width), of this height and width."""
    frames = images if images.ndim == 4 else images.movedim(2, 1).flatten(0, 1)
    frames = nn.functional.interpolate(frames, size, mode="bilinear", antialias=True)
    return frames if images.ndim == 4 else frames.view(len(images), images.shape[2], *frames.shape[1:]).movedim(1, 2)


@lru_cache
def _tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a value per channel, (channels,). Cached, because a copy to a GPU waits for it."""
    return torch.tensor(values, dtype=dtype, device=device)


def as_view(view: "View | Callable[[Batch], Call]", net: str) -> View:
    """Return a view, or a function as a view. Raises RecipeError for any other object."""
    if not isinstance(view, type):
        if isinstance(view, View):
            return view
        if callable(view) and not isinstance(view, nn.Module):
            return _FunctionView(view)
    raise RecipeError(
        f"the view of net {net!r} must be Inputs(only=(...)), Images(...), or a function of the batch that returns the "
        f"arguments of the network, such as lambda batch: ((change(batch.inputs),), {{}}); got {describe(view)}"
    )


@dataclass(frozen=True, slots=True)
class _FunctionView:
    """A function as a view."""

    function: Callable[[Batch], Call]

    @property
    def key(self) -> str:
        """The name of the function. The key of a teacher cache also has its code."""
        return getattr(self.function, "__name__", None) or type(self.function).__name__

    @property
    def describe(self) -> Callable[[Mapping[str, Any]], Mapping[str, Any]] | None:
        """The method of an object that has no `key`, see `View`; None if there is none."""
        return getattr(self.function, "describe", None)

    def __call__(self, batch: Batch) -> Call:
        """Return what the function returns."""
        return self.function(batch)

    def __repr__(self) -> str:
        return self.key  # without an address
