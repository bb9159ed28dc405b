"""Find and undo changes that a training step makes in Python, which a replayed CUDA graph would not repeat."""

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from operator import is_
from types import CellType, FunctionType, MemberDescriptorType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_PARTS_OF_MODULES = ("_parameters", "_buffers", "_modules")
_IN_MODULES = frozenset(vars(nn.Module()))  # attributes in which torch stores these parts, hooks, and the mode
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_LIBRARIES = sys.stdlib_module_names | {"numpy", "torch"}  # attributes of their objects are not compared
_LIBRARIES_AND_KDKIT = _LIBRARIES | {"kdkit"}  # global variables of their code are not compared either


class PythonState:
    """A snapshot of what objects hold in Python, and of the CPU's random states, which a replayed step does not change.

    It includes everything that they hold: modules, tensors, containers, arrays, random generators, variables of
    functions, and user-defined objects; and numbers and strings in attributes of their classes, and in global variables
    that their code reads. An array or a tensor on the CPU changes if it is filled in place. Any tensor changes if it
    gets other memory, or starts or stops to require gradients.
    """

    def __init__(self, objects: Iterable[object]) -> None:
        self._random = [
            _state_part("the random state of Python", random.getstate, random.setstate),
            _state_part("the random state of numpy", np.random.get_state, np.random.set_state),
            _state_part("the random state of the CPU", torch.get_rng_state, torch.set_rng_state),
        ]
        self._parts: list[_Part] = []
        self._tensors: list[tuple[Tensor, str]] = []
        self._hooks: list[dict[int, Any]] = []
        self._add_all(objects)
        self._values = [*chain.from_iterable(part.values for part in self._parts)]
        self._states_of_tensors = self._read_tensors()
        self._ids_of_hooks = [*chain.from_iterable(self._hooks)]

    def changes(self) -> list[str]:
        """Return a description of everything that changed."""
        return [*self.changed_attributes(), *(label for part in self._random for label in part.changes())]

    def changed_attributes(self) -> list[str]:
        """Return a description of everything that changed in the objects."""
        changed = []
        # Fast, because there are thousands of values, and they seldom change.
        values = [*chain.from_iterable([part.read() for part in self._parts])]
        if len(values) != len(self._values) or not all(map(is_, values, self._values)):
            changed += [label for part in self._parts for label in part.changes()]
        states = self._read_tensors()
        if states != self._states_of_tensors:
            pairs = zip(self._tensors, states, self._states_of_tensors, strict=True)
            changed += [label for (_, label), current, before in pairs if current != before]
        if [*chain.from_iterable(self._hooks)] != self._ids_of_hooks:
            changed.append("a hook")
        return [*dict.fromkeys(changed)]

    def restore(self) -> None:
        """Undo the changes, except those of hooks and of what tensors require."""
        for part in (*self._random, *self._parts):
            if part.changes():
                part.restore(part.values)

    def _add_all(self, objects: Iterable[object]) -> None:
        """Add the parts of these objects, and of everything that they hold."""
        seen: set[int] = set()
        unread = [(owner, "", True) for owner in objects]
        for value, label, is_root in unread:  # it grows
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Tensor) and _has_memory(value):
                self._tensors.append((value, label))
            if isinstance(value, nn.Module):
                attributes = vars(value)
                self._hooks += [attributes[name] for name in _HOOKS]
                # The hooks of taps have state that changes in each step.
                seen.update(id(attributes.get(name)) for name in _IN_MODULES)
            is_object = is_root and not isinstance(value, partial | MethodType)
            parts = _parts_of_object(value) if is_object else _parts_of(value, label)
            self._parts += parts
            held = chain.from_iterable(zip(part.values, part.labels, strict=True) for part in parts)
            unread += [(item, item_label, False) for item, item_label in held]
            unread += [(base, "", False) for base in type(value).__mro__]

    def _read_tensors(self) -> list[tuple[int, bool]]:
        return [(tensor.data_ptr(), tensor.requires_grad) for tensor, _ in self._tensors]


class _Part(NamedTuple):
    """The attributes of an object, the items of a container, or a state.

    read: returns the current values. values: those of the snapshot. labels: describe them, one by one. label: describes
    a change of their number. restore: puts values back.
    """

    label: str
    labels: tuple[str, ...]
    read: Callable[[], Iterable[Any]]
    values: tuple[Any, ...]
    restore: Callable[[tuple[Any, ...]], object]

    def changes(self) -> list[str]:
        """Return the labels of the values that changed."""
        current = (*self.read(),)
        if len(current) != len(self.values):
            return [self.label]
        triples = zip(self.labels, current, self.values, strict=True)
        return [label for label, value, before in triples if not _is_same(value, before)]


def _parts_of(value: Any, label: str) -> list[_Part]:
    """Return the parts of a value that an attribute holds. label: of the attribute."""
    if isinstance(value, Tensor):
        is_read = value.device.type == "cpu" and _has_memory(value)
        return [_state_part(label, value.detach().clone, partial(_fill, value))] if is_read else []
    if type(value) is np.ndarray:  # not a memmap, which may be larger than the memory
        return [_state_part(label, value.copy, partial(np.copyto, value))]
    if isinstance(value, dict):
        return [_part(label, value.values, partial(_refill, value, tuple(value)))]
    if isinstance(value, list | deque | set):
        return [_part(label, value.__iter__, partial(_replace_items, value))]
    if isinstance(value, tuple):
        return [_part(label, value.__iter__, lambda _: None)]
    if isinstance(value, random.Random):
        return [_state_part(label, value.getstate, value.setstate)]
    if isinstance(value, np.random.Generator):
        bits: Any = value.bit_generator
        return [_state_part(label, lambda: bits.state, lambda state: setattr(bits, "state", state))]
    if isinstance(value, torch.Generator) and value.device.type == "cpu":
        return [_state_part(label, value.get_state, value.set_state)]
    if isinstance(value, MethodType):
        return [_part(label, lambda: (value.__self__,), lambda _: None)]
    if isinstance(value, partial):
        return [_part(label, lambda: (value.func, value.args, value.keywords), lambda _: None)]
    if isinstance(value, type):
        return _parts_of_class(value)
    defined_in = str((value if isinstance(value, FunctionType) else type(value)).__module__)
    if defined_in.split(".")[0] in _LIBRARIES and not isinstance(value, nn.Module):
        return []
    return _parts_of_object(value)


def _parts_of_object(owner: Any) -> list[_Part]:
    """Return the attributes of an object, the variables around a function, and global variables, as parts."""
    name = getattr(owner, "__name__", type(owner).__name__)
    attributes = getattr(owner, "__dict__", {})
    dicts = [attributes, *(attributes[part] for part in _PARTS_OF_MODULES if isinstance(owner, nn.Module))]
    parts = [
        _Part(
            f"the number of attributes of {name}",
            tuple(f"attribute {key!r} of {name}" for key in items),
            items.values,
            (*items.values(),),
            partial(_refill, items, tuple(items)),
        )
        for items in dicts
    ]
    with_slots = [vars(base) for base in type(owner).__mro__ if "__slots__" in vars(base)]
    members = [name for items in with_slots for name, item in items.items() if isinstance(item, MemberDescriptorType)]
    slots = [name for name in members if hasattr(owner, name)]
    parts += [_slot_part(f"attribute {slot!r} of {name}", owner, slot) for slot in slots]
    if isinstance(owner, FunctionType) and owner.__closure__ is not None:
        cells = zip(owner.__code__.co_freevars, owner.__closure__, strict=True)
        filled = [(variable, cell) for variable, cell in cells if cell != CellType()]
        parts += [_slot_part(f"variable {variable!r} of {name}", cell, "cell_contents") for variable, cell in filled]
    if isinstance(owner, FunctionType) and _is_user_code(owner):
        parts.append(_globals_of(owner))
    return parts


def _parts_of_class(owner: type) -> list[_Part]:
    """Return the numbers and strings that all objects of a class share, in attributes and in global variables."""
    if not _is_user_code(owner):
        return []
    attributes = vars(owner)
    names = [name for name, value in attributes.items() if isinstance(value, _PLAIN) and not name.startswith("__")]

    def read() -> list[Any]:
        return [attributes.get(name) for name in names]

    def restore(values: tuple[Any, ...]) -> None:
        for name, value in zip(names, values, strict=True):
            setattr(owner, name, value)

    labels = tuple(f"attribute {name!r} of the class {owner.__name__}" for name in names)
    methods = [item for item in attributes.values() if isinstance(item, FunctionType)]
    parts = [_Part("", labels, read, (*read(),), restore), *map(_globals_of, methods)]
    return [part for part in parts if part.values]


def _is_user_code(code: FunctionType | type) -> bool:
    return str(code.__module__).split(".")[0] not in _LIBRARIES_AND_KDKIT


def _globals_of(function: FunctionType) -> _Part:
    """Return the numbers and strings in global variables that a function reads."""
    variables = function.__globals__
    names = [name for name in function.__code__.co_names if isinstance(variables.get(name, ...), _PLAIN)]

    def read() -> list[Any]:
        return [variables.get(name) for name in names]

    def restore(values: tuple[Any, ...]) -> None:
        variables.update(zip(names, values, strict=True))

    return _Part("", tuple(f"global variable {name!r}" for name in names), read, (*read(),), restore)


def _has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is stored in one piece of memory."""
    return tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested or is_lazy(tensor))


def _slot_part(label: str, owner: Any, slot: str) -> _Part:
    def restore(values: tuple[Any, ...]) -> None:
        object.__setattr__(owner, slot, *values)  # a frozen dataclass refuses setattr

    return _part(label, lambda: (getattr(owner, slot),), restore)


def _state_part(label: str, get: Callable[[], Any], set_state: Callable[[Any], object]) -> _Part:
    before = get()
    return _part(label, lambda: (_is_equal(get(), before),), lambda _: set_state(before))


def _part(label: str, read: Callable[[], Iterable[Any]], restore: Callable[[tuple[Any, ...]], object]) -> _Part:
    values = (*read(),)
    return _Part(label, (label,) * len(values), read, values, restore)


def _refill(items: dict[Any, Any], keys: Iterable[Any], values: Iterable[Any]) -> None:
    items.clear()
    items.update(zip(keys, values, strict=True))


def _replace_items(container: list[Any] | deque[Any] | set[Any], items: Iterable[Any]) -> None:
    container.clear()
    (container.update if isinstance(container, set) else container.extend)(items)


def _fill(tensor: Tensor, content: Tensor) -> None:
    tensor.detach().copy_(content)


def _is_equal(current: Any, before: Any) -> bool:
    """Whether two states, of nested containers with numbers, strings and arrays, are equal to the bit."""
    if isinstance(before, Tensor):
        return torch.equal(*(state.contiguous().view(-1).view(torch.uint8) for state in (current, before)))
    if isinstance(before, np.ndarray):
        return bool(current.tobytes() == before.tobytes())  # NaN does not equal itself
    if isinstance(before, dict):
        return all(map(_is_equal, current.values(), before.values()))
    if isinstance(before, tuple):
        return all(map(_is_equal, current, before))
    return bool(current == before)


def _is_same(current: Any, before: Any) -> bool:
    """Whether a value is unchanged: an equal number or string, a tuple of these, or the same object."""
    if current is before:
        return True
    if type(current) is not type(before):
        return False
    if isinstance(before, tuple):
        return len(current) == len(before) and all(map(_is_same, current, before))
    return isinstance(before, _PLAIN) and bool(current == before or (current != current and before != before))
