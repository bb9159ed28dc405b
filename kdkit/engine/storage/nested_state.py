"""Store nested states, such as that of an optimizer, as named tensors and JSON. Reading them cannot run code."""

import base64
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kdkit.errors import RunFolderError
from kdkit.utils.devices import copy_to_cpu
from kdkit.utils.sealed import DTYPES

# A value that JSON does not support becomes an object with a single key, its kind. A dict becomes a list of pairs,
# because its keys may be numbers.
_DICTS: dict[type, str] = {dict: "dict", defaultdict: "dict", OrderedDict: "ordered", Counter: "counter"}
_SEQUENCES: dict[type, str] = {tuple: "tuple", torch.Size: "tuple", set: "set", frozenset: "frozenset"}
_PLAIN = (bool, int, str, type(None))
_DTYPES = {str(dtype): dtype for dtype in (*DTYPES, torch.complex128)}
_ARRAYS = [np.dtype(code) for code in "?BHILbhilefdF"]  # dtypes that safetensors supports: numbers of 1 to 8 bytes


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Return CPU copies of the tensors in a state by their path of keys, and the rest as a JSON value.

    Raises RunFolderError with the path of a value that is neither a tensor nor plain.
    """
    tensors: dict[str, Tensor] = {}

    def add(value: Tensor, path: str) -> str:
        name = path if path not in tensors else f"{path}#{len(tensors)}"
        tensors[name] = value
        return name

    def encode(value: Any, path: str) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if _is_plain_tensor(value) and value.dtype in (*DTYPES, torch.complex128):
            plain = value.detach().as_subclass(Tensor)
            if value.dtype == torch.complex128:  # not supported by safetensors
                return {"complex128": add(torch.view_as_real(plain.resolve_conj()), path)}
            return {"tensor": add(plain, path)}
        if kind in _DICTS:
            return {
                _DICTS[kind]: [
                    [encode(key, path), encode(item, f"{path}.{key}" if path else str(key))]
                    for key, item in value.items()
                ]
            }
        if kind is list:
            return [encode(item, f"{path}.{index}") for index, item in enumerate(value)]
        if kind in _SEQUENCES:
            return {_SEQUENCES[kind]: encode(list(value), path)}
        if kind is torch.dtype and str(value) in _DTYPES:  # an option of some optimizers
            return {"torch_dtype": str(value)}
        if kind is bytes:
            return {"bytes": base64.b64encode(value).decode()}
        if kind is complex:
            return {"complex": [encode(value.real, path), encode(value.imag, path)]}
        if isinstance(value, np.ndarray | np.generic) and value.dtype.newbyteorder("=") in _ARRAYS:
            array = np.array(value, value.dtype.newbyteorder("="), order="C")  # torch needs the native byte order
            return {"numpy": add(torch.from_numpy(array), path), "dtype": value.dtype.str}
        raise RunFolderError(
            f"a checkpoint holds tensors and plain values only, but {path or 'the state'} is a {kind.__module__}."
            f"{kind.__qualname__}; change the state_dict() that it is part of"
        )

    encoded = encode(state, "")
    copies = (copy.contiguous() for copy in copy_to_cpu(list(tensors.values())))
    return dict(zip(tensors, copies, strict=True)), encoded


def _is_plain_tensor(value: object) -> bool:
    """Whether all values of a tensor are in its storage. Tensors of user-defined classes are stored as plain ones."""
    if not isinstance(value, Tensor) or is_lazy(value) or is_traceable_wrapper_subclass(value):
        return False
    return value.layout is torch.strided


def unflatten(tensors: Mapping[str, Tensor], encoded: Any) -> Any:
    """Return the state that `flatten` was called with. Raises ValueError if `flatten` did not return these values."""
    if isinstance(encoded, list):
        return [unflatten(tensors, item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded

    def pairs(items: Iterable[Any]) -> dict[Any, Any]:
        return {unflatten(tensors, key): unflatten(tensors, item) for key, item in items}

    def numpy(name: str) -> Any:
        array: Any = tensors[name].numpy().astype(encoded["dtype"])
        return array[()] if array.ndim == 0 else array

    decoders: dict[str, Callable[[Any], Any]] = {
        "float": float,
        "tensor": lambda name: tensors[name],
        "complex128": lambda name: torch.view_as_complex(tensors[name]),
        "dict": pairs,
        "ordered": lambda items: OrderedDict(pairs(items)),
        "counter": lambda items: Counter(pairs(items)),
        "tuple": lambda items: tuple(unflatten(tensors, items)),
        "set": lambda items: set(unflatten(tensors, items)),
        "frozenset": lambda items: frozenset(unflatten(tensors, items)),
        "torch_dtype": _DTYPES.__getitem__,
        "bytes": base64.b64decode,
        "complex": lambda parts: complex(*unflatten(tensors, parts)),
        "numpy": numpy,
    }
    kind = next(iter(encoded), "")
    if kind not in decoders:
        raise ValueError(f"it has a value of the unknown kind {kind!r}")
    return decoders[kind](encoded[kind])
