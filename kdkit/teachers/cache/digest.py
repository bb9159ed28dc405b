"""Take a digest of values by what they are made of: tensors, numbers, and the code that would run."""

import enum
import functools
import hashlib
import logging
import types
from collections import deque
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule

from kdkit.errors import CacheError
from kdkit.teachers.cache.code import attributes, enclosed, library, members
from kdkit.teachers.cache.references import of_ones_own, referred, searches

_MOST = 200_000  # values in a digest: more are a trainer or a data set that a module holds, and no part of what it does
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type(...), range, slice, PurePath,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, np.generic, np.dtype,
)  # fmt: skip
_BUILTIN = (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType)
_FUNCTION = (types.FunctionType, types.MethodType, functools.partial, *_BUILTIN)
_CONSTANT = (tuple, frozenset, types.CodeType)  # equal ones may be one object or two, as the interpreter likes
_SLOT = (types.MemberDescriptorType, types.GetSetDescriptorType)
_OF_MODULES = {*nn.Module().__dict__, "_is_full_backward_hook", "_compiled_call_impl"} - {"training"}


class Digest:
    """A sha256 of values. Functions and classes count by their byte code, their constants and what they refer to.

    That is the code that runs, where a source file may have been edited since it was imported. What an installed
    package or Python itself brings counts by its name and version. Equal digests are equal values; of equal values
    digests may differ, as those of dicts in another order.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._held: list[object] = []  # so that no id is given to another object meanwhile

    def add(self, value: object, where: str) -> "Digest":
        """Take in a value. Raises CacheError, which names the place, for one whose content cannot be told."""
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            self._say(type(value).__name__, repr(value))
            if library(type(value).__module__) is not None:
                return self
        self._held.append(value)
        if len(self._held) > _MOST:
            raise CacheError(f"{where} leads to more than {_MOST:,} values")
        if not isinstance(value, _CONSTANT):
            if id(value) in self._seen:
                self._say("again", str(self._seen[id(value)]))
                return self
            self._seen[id(value)] = len(self._seen)
        self._made_of(value, where)
        return self

    def hexdigest(self) -> str:
        """Return the digest as it stands."""
        return self._hash.hexdigest()

    def _say(self, *words: str) -> None:
        for word in words:
            content = word.encode(errors="surrogatepass")
            self._hash.update(len(content).to_bytes(8, "little") + content)

    def _made_of(self, value: Any, where: str) -> None:
        if name := searches(value):
            raise CacheError(f"{where} is {name}, by which it may find anything; give it the values instead")
        if isinstance(value, Tensor):
            self._tensor(value, where)
        elif isinstance(value, np.ndarray):
            self._array(value, where)
        elif isinstance(value, nn.Module):
            self._module(value, where)
        elif isinstance(value, enum.Enum):
            self.add((type(value), str(value.name), value.value), where)
        elif isinstance(value, type):
            self._class(value, where)
        elif isinstance(value, types.CodeType):
            self._code(value, where)
        elif isinstance(value, _FUNCTION):
            self._function(value, where)
        elif isinstance(value, (Mapping, list, tuple, set, frozenset, deque)):
            self._container(value, where)
        else:
            self._object(value, where)

    def _tensor(self, value: Tensor, where: str) -> None:
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            raise CacheError(f"{where} is a tensor of which the bytes cannot be read")
        content = value.detach().cpu().contiguous().resolve_conj().resolve_neg()
        self._say("tensor", str(value.dtype), str(tuple(value.shape)))
        self._hash.update(content.reshape(-1).view(torch.uint8).numpy().data if content.numel() else b"")
        if library(type(value).__module__) is None:
            self.add(type(value), where)
        if vars(value):  # attributes that somebody set on it
            self.add(vars(value), where)

    def _array(self, value: NDArray[Any], where: str) -> None:
        self.add(value.tolist() if value.dtype.hasobject else (value.dtype, value.shape, value.tobytes()), where)
        if library(type(value).__module__) is None:
            self.add((type(value), vars(value) if hasattr(value, "__dict__") else None), where)

    def _container(self, value: Any, where: str) -> None:
        self._say(type(value).__name__, str(len(value)))
        if isinstance(value, (set, frozenset)):  # in no order of their own
            self._say(*sorted(Digest().add(each, where).hexdigest() for each in value))
            return
        for place, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            self.add(place, where)
            self.add(each, f"{where}[{place!r}]" if isinstance(place, (str, int)) else where)
        if type(value).__module__ != "builtins":
            self.add(type(value), where)
            self.add(getattr(value, "default_factory", None), where)
            self.add(vars(value) if hasattr(value, "__dict__") else None, where)

    def _module(self, module: nn.Module, where: str) -> None:
        self.add([type(module), *_hooks(module, where)], where)
        own = {name: each for name, each in vars(module).items() if name not in _OF_MODULES}
        if type(module).__name__ == "OptimizedModule":  # torch.compile's: what it computes is its original's to say
            own = {}
        if isinstance(module, GraphModule):  # torch.fx's: what runs was compiled from its graph
            own = {name: each for name, each in own.items() if name != "_graph"}
            self.add(type(module).forward, where)
        for part in (module._parameters, module._buffers, module._modules, own):
            self._say(str(len(part)))
            for name, each in part.items():
                self._say(name)
                self.add(each, f"{where}.{name}")

    def _class(self, kind: type, where: str) -> None:
        self._say("class", kind.__qualname__)  # a recipe file is not always a module of the same name
        for base in kind.__mro__:
            package = library(base.__module__)
            if package is not None:
                self._say(base.__module__, base.__qualname__, package)
                continue
            if issubclass(base, enum.Enum):
                self.add([(name, each.value, _own_attributes(each)) for name, each in base.__members__.items()], where)
            for name, value in members(base):
                self._say(name)
                self.add(value, f"{where}: {base.__qualname__}.{name}")

    def _function(self, value: Any, where: str) -> None:
        if isinstance(value, functools.partial):
            self.add((value.func, value.args, value.keywords), where)
        elif isinstance(value, types.MethodType):
            self.add(value.__func__, where)
            self.add(value.__self__, where)
        elif isinstance(value, _BUILTIN):
            self._builtin(value, where)
        elif library(value.__module__ or "?") and library(value.__globals__.get("__name__", "?")):
            self._say(value.__module__, value.__qualname__, library(value.__module__) or "")
        else:
            self.add(value.__code__, where)
            trials = [None if of_ones_own(each) else each for each in enclosed(value)]  # what is taken from it counts
            self.add((value.__defaults__, value.__kwdefaults__, trials, vars(value)), where)
            for name, each in referred(value):
                self._say(name)
                self.add(each, f"{where}: {name}")

    def _builtin(self, value: Any, where: str) -> None:
        """Take in a function of a library that is compiled, with the object whose method it is."""
        home = getattr(value, "__module__", None) or "builtins"
        package = library(home)
        if package is None:
            raise CacheError(f"{where} is compiled code of no installed package, {home}.{value.__qualname__}")
        self._say(home, value.__qualname__, package)
        owner = getattr(value, "__self__", None)
        if not isinstance(owner, types.ModuleType) and type(owner).__name__ != "PyCapsule":  # of functions of libraries
            self.add(owner, where)

    def _code(self, code: types.CodeType, where: str) -> None:
        self._say(code.co_name, code.co_code.hex(), code.co_exceptiontable.hex())
        for names in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars):
            self._say(str(len(names)), *names)
        self._say(str((code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags)))
        self.add(list(code.co_consts), where)

    def _object(self, value: Any, where: str) -> None:
        """Take in an object by its class and its attributes; by how it would be pickled where it has none."""
        if isinstance(value, logging.Logger):
            self._say("logger", value.name)
        elif isinstance(value, types.ModuleType):
            if of_ones_own(value):
                raise CacheError(
                    f"{where} is the module {value.__name__}, from which anything may be taken; give it the functions "
                    "and values instead"
                )
            self._say("module", value.__name__, library(value.__name__) or "")
        elif isinstance(value, (staticmethod, classmethod)):
            self.add(value.__func__, where)
        elif isinstance(value, property):
            self.add((value.fget, value.fset), where)
        elif isinstance(value, functools.cached_property):
            self.add(value.func, where)
        elif isinstance(value, _SLOT):
            self._say("slot", value.__name__)
        else:
            self.add(type(value), where)
            self.add(attributes(value, where), where)


def _own_attributes(member: enum.Enum) -> dict[str, Any]:
    return {name: value for name, value in vars(member).items() if not name.startswith("_")}


def _hooks(module: nn.Module, where: str) -> list[Any]:
    """Return torch's own hooks on a module, as of its weight_norm. Raises CacheError where a user's are on it.

    Open taps of kdkit change nothing.
    """
    dicts = (module._forward_hooks, module._forward_pre_hooks, nn.modules.module._global_forward_hooks)
    kept = []
    for hook in (hook for each in (*dicts, nn.modules.module._global_forward_pre_hooks) for hook in each.values()):
        home = getattr(hook, "__module__", None) or type(hook).__module__
        if home.split(".")[0] == "torch":
            kept.append(hook)
        elif home != "kdkit.nets.taps":
            name = getattr(hook, "__qualname__", type(hook).__qualname__)
            raise CacheError(f"{where} has a hook of its own on it ({name}), which may do anything")
    return kept
