"""Find and undo changes that a training step makes in Python, which a replayed CUDA graph would not repeat."""

import random
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

_PLAIN = (bool, int, float, str, bytes, type(None))
_CONTAINERS = (list, dict, set)
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))  # attributes in which torch stores parameters, hooks and submodules


class PythonState:
    """A snapshot of the attributes of objects and of the CPU's random states, which a replayed step does not change."""

    def __init__(self, objects: Iterable[object]) -> None:
        self._random = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._attributes = [
            (owner, name, value, value.copy() if type(value) in _CONTAINERS else value)
            for owner in objects
            for name, value in _attributes(owner)
        ]

    def changes(self) -> list[str]:
        """Return a description of everything that changed."""
        python, numpy, cpu = self._random
        changed = [
            f"attribute {name!r} of {type(owner).__name__}"
            for owner, name, value, copied in self._attributes
            if not _is_same(getattr(owner, name, None), value, copied)
        ]
        if python != random.getstate():
            changed.append("the random state of Python")
        if not all(np.array_equal(before, after) for before, after in zip(numpy, np.random.get_state(), strict=True)):
            changed.append("the random state of numpy")
        if not torch.equal(cpu, torch.get_rng_state()):
            changed.append("the random state of the CPU")
        return changed

    def restore(self) -> None:
        """Undo the changes."""
        python, numpy, cpu = self._random
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for owner, name, value, copied in self._attributes:
            if _is_same(getattr(owner, name, None), value, copied):
                continue
            setattr(owner, name, value)
            if isinstance(value, list):
                value[:] = copied
            elif isinstance(value, (dict, set)):
                value.clear()
                value.update(copied)


def _attributes(owner: object) -> Iterator[tuple[str, Any]]:
    for name, value in getattr(owner, "__dict__", {}).items():
        if not (isinstance(owner, nn.Module) and name in _MODULE_ATTRIBUTES):
            yield name, value
    if isinstance(owner, nn.Module):
        yield from owner._buffers.items()


def _is_same(current: Any, before: Any, copied: Any) -> bool:
    """Whether an attribute is unchanged: an equal number or string, or the same object with the same elements."""
    if isinstance(before, _PLAIN):
        return type(current) is type(before) and (current == before or (current != current and before != before))
    return current is before and (type(before) not in _CONTAINERS or _elements(before) == _elements(copied))


def _elements(container: list[Any] | dict[Any, Any] | set[Any]) -> list[Any] | set[Any]:
    """Return the elements to compare: numbers and strings by value, other objects by identity."""
    items = chain.from_iterable(container.items()) if isinstance(container, dict) else container
    elements = [item if isinstance(item, _PLAIN) else id(item) for item in items]
    return set(elements) if isinstance(container, set) else elements
