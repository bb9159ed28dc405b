"""What a net sees of a batch, so that a teacher and its student may see different things."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.errors import RecipeError

Call = tuple[tuple[Any, ...], dict[str, Any]]
Element = int | str | Callable[[Any], Tensor] | None


@runtime_checkable
class View(Protocol):
    """Turns a batch into a net's arguments. Frozen and picklable; `key` tells all that it does."""

    @property
    def key(self) -> str:
        """All that it does, in words."""
        ...

    def __call__(self, batch: Batch) -> Call:
        """Return the net's arguments and keywords."""
        ...


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs as they are: a tensor is the one argument, a tuple the arguments, a dict the keywords."""

    @property
    def key(self) -> str:
        """The same for every batch: nothing is changed."""
        return "inputs"

    def __call__(self, batch: Batch) -> Call:
        """Return the net's arguments and keywords."""
        if isinstance(batch.inputs, Tensor):
            return (batch.inputs,), {}
        if isinstance(batch.inputs, Mapping):
            return (), dict(batch.inputs)
        if isinstance(batch.inputs, (tuple, list)):
            return tuple(batch.inputs), {}
        return (batch.inputs,), {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Images in 0..1, (batch, channels, height, width), normalised by channel and, if asked, resized.

    size: height and width that the net expects, reached by bilinear interpolation with anti-aliasing; None keeps them.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise RecipeError(
                f"Images needs as many standard deviations as means, all above 0; got mean={self.mean}, std={self.std}"
            )

    @classmethod
    def of(cls, module: nn.Module, *, resize: bool = False) -> "Images":
        """Return the normalisation that a timm model was trained with."""
        config = getattr(module, "pretrained_cfg", None)
        if not config:
            raise RecipeError(f"{type(module).__name__} says nothing of its normalisation; is it a timm model?")
        size = tuple(config["input_size"][1:]) if resize else None
        return cls(mean=tuple(config["mean"]), std=tuple(config["std"]), size=size)

    @property
    def key(self) -> str:
        """All that is done to an image, in words."""
        return f"images:mean={self.mean},std={self.std},size={self.size}"

    def __call__(self, batch: Batch) -> Call:
        """Return the normalised images as the one argument."""
        images = batch.inputs
        if self.size is not None and images.shape[-2:] != self.size:
            images = nn.functional.interpolate(images, self.size, mode="bilinear", antialias=True)
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(shape)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(shape)
        return ((images - mean) / std,), {}


def picked(value: Any, element: Element, what: str) -> Tensor:
    """Return one tensor of what a module returned; `what` names the module in errors.

    A lone tensor is taken whole, also where an index or a key is given: some models return more only while they train.
    """
    if callable(element):
        value = element(value)
    elif element is not None and not isinstance(value, Tensor):
        value = _element(value, element, what)
    if not isinstance(value, Tensor):
        raise RecipeError(
            f"{what} gives {_describe(value)} where one tensor was expected; say which with element=..., "
            "an index, a key or a function"
        )
    return value


def _element(value: Any, element: int | str, what: str) -> Any:
    try:
        if isinstance(element, str) and not isinstance(value, Mapping):
            return getattr(value, element)
        return value[element]
    except (LookupError, TypeError, AttributeError):
        raise RecipeError(f"{what} gives {_describe(value)}, which has no element {element!r}") from None


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value))}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
