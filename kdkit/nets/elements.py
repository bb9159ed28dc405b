"""Select one tensor of a module's output, which may be a tuple, a mapping or an object of several tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from kdkit.data.batch import items_of
from kdkit.errors import RecipeError

Element = int | str | Callable[[Any], Tensor] | None

# The order matters: a model that returns logits may also return the hidden state from which they are computed.
_USUAL_NAMES = ("logits", "last_hidden_state", "out")


def validate_element(element: object) -> None:
    """Raise RecipeError if an object cannot select a tensor."""
    if element is not None and not isinstance(element, int | str) and not callable(element):
        raise RecipeError(f"element must be an index, a key or attribute, or a function; got {element!r}")


def pick_tensor(value: Any, element: Element, source: str) -> Tensor:
    """Return one tensor of a module's output. Raises RecipeError if `element` does not select a tensor.

    element: an index, a key or attribute, or a function; for None, see `default_element`. source: the name of the
    module in error messages.
    """
    if isinstance(value, Tensor) and not callable(element):  # some models return several tensors only in training
        return value
    if callable(element):
        picked = element(value)
    else:
        chosen = default_element(value) if element is None else element
        try:
            # A name is a key of a mapping, or an attribute of anything else, such as a named tuple.
            is_attribute = isinstance(chosen, str) and not isinstance(value, Mapping)
            picked = value if chosen is None else getattr(value, str(chosen)) if is_attribute else value[chosen]
        except (LookupError, TypeError, AttributeError):
            raise RecipeError(
                f"{source} gives {_describe(value)}, which has no element {element!r}{_advice(value, element)}"
            ) from None
    if isinstance(picked, Tensor):
        return picked
    tensors = ", ".join(f"{key!r} {tuple(tensor.shape)}" for key, tensor in _tensors_of(value))
    listing = f"; its tensors are {tensors}" if tensors else ""
    raise RecipeError(f"{source} gives {_describe(value)}{_no_tensor(value, element, picked)}{listing}")


def default_element(value: Any) -> int | str | None:
    """Return the index or key of the tensor that is taken from a module's output by default.

    It is the tensor named `logits`, `last_hidden_state` or `out`, in this order, as models of transformers and
    torchvision name it, otherwise the only floating-point tensor. Scalars, such as a loss, nested values, such as a
    cache, and attention maps do not count. Returns None if there is no such tensor, or if there are several.
    """
    for name in _USUAL_NAMES:
        item = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if isinstance(item, Tensor):
            return name
    tensors = [(key, item) for key, item in _tensors_of(value) if item.ndim and item.is_floating_point()]
    # In addition to (batch, tokens, channels), an attention layer may return its map, (batch, heads, tokens, tokens),
    # and a T5 layer its position biases, which may be one map for the whole batch.
    shape = tensors[0][1].shape if tensors else ()
    maps = ((1, shape[1]), (shape[0], shape[1])) if len(shape) == 3 else ()  # (batch, tokens) of such maps
    keys = [key for key, item in tensors if item.ndim < 4 or (item.shape[0], item.shape[2]) not in maps]
    return keys[0] if len(keys) == 1 else None


def _tensors_of(value: Any) -> list[tuple[Any, Tensor]]:
    """Return the tensors that are directly in a value, with the `element` that selects each."""
    items = zip(value._fields, value, strict=True) if hasattr(value, "_fields") else items_of(value) or ()
    return [(key, item) for key, item in items if isinstance(item, Tensor)]


def _no_tensor(value: Any, element: Element, picked: Any) -> str:
    """Return why no tensor is picked from a value, and what to do. picked: the object that `element` selects."""
    if value is None:
        return ", but a tensor was expected; does it return its result?"
    if isinstance(picked, np.ndarray):
        return ", but a tensor was expected; return torch.from_numpy(...).float()"
    if element is None:
        reason = ", but one tensor was expected; select it with element=..., an index, a key or a function"
        is_empty = isinstance(value, Mapping | list | tuple) and not any(item.ndim for _, item in _tensors_of(value))
        if is_empty:  # such as the losses of a detector, or its detections, a dict for each image
            reason += ", or, if no term compares outputs, pass element=lambda outputs: torch.zeros(len(outputs), 1)"
        return reason
    if callable(element):
        return f", but element=... returns {_describe(picked)} for it; expected one tensor"
    reason = f", whose element {element!r} is {_describe(picked)}; expected one tensor{_advice(value, element)}"
    if isinstance(picked, tuple | list) and isinstance(value, Mapping):  # such as the hidden states of all layers
        reason += f", such as element=lambda outputs: outputs[{element!r}][-1]"
    return reason


def _advice(value: Any, element: Element) -> str:
    """Return how to make a transformers model return an element that it leaves out by default; "" for others."""
    if element == "loss":
        return "; transformers models return it if the inputs have labels"
    if isinstance(value, tuple) and element == 1 and value[1:] in ((), (None,)):  # an attention layer without its map
        return (
            "; fused attention computes no map: create the model with attn_implementation='eager', or call "
            "model.set_attn_implementation('eager'), or, as for DeBERTa, with output_attentions=True"
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
