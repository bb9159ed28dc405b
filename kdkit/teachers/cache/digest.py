"""Compute a digest of a teacher: its tensors, its attributes, and the source of the code that it runs.

=====================================================================================  ================================
You change                                                                             Effect on the next run
=====================================================================================  ================================
a weight, a buffer, or a tensor that is a plain attribute (`self.table`)               new key: outputs are recomputed
an attribute of any submodule: `temperature = 3`, `norm.eps`, a value in a dict        new key
a method of your class, used or not (or a comment in it); what `__init__` calls        new key
a function, class or constant that a method uses                                       new key
a class docstring, or a comment between two methods; the name of the file              same key: cached outputs are used
the value in a closure, or an argument of a `functools.partial`                        new key
the installed version of torch, timm, or another package that a class comes from       new key
another function or line of the same file, which the teacher does not use              same key: cached outputs are used
a source file, after it was imported; code typed at a prompt or run by `exec`          not cached, with the reason
a forward hook of yours, a lock or an open file as an attribute                        not cached, with the reason
code that uses `os.environ`, `os.getenv`, `sys.modules`, `globals()` or `eval()`       not cached, with the reason
two lambdas on one line; a module of yours as an argument, or imported in a function   not cached, with the reason
a file or a service that `forward` reads, a patched installed package, a C++ operator  same key: the audit stops the run
=====================================================================================  ================================

"Yours" is all code outside the standard library and the installed packages; a package installed in editable mode is
yours. In such a function, names are followed recursively to the globals, closures and modules that they refer to.
"""

import copyreg
import functools
import hashlib
import json
import logging
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kdkit.errors import CacheError
from kdkit.teachers.cache.source import DYNAMIC, is_user_module, package_of, package_of_file, references, source_of

_MAX_VALUES = 200_000  # a module with more values than this holds a trainer or a dataset
_SIMPLE = (type(None), bool, int, float, complex, str, bytes)
_GENERATED = {"__init__", "__new__", "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__",
              "__setattr__", "__delattr__", "__replace__"}  # fmt: skip
_MODULE_STATE = {*nn.Module().__dict__, "_is_full_backward_hook", "_compiled_call_impl"} - {"training"}

# Attributes of a graph that do not change its outputs. Those of torch.export change each time a program is loaded.
_GRAPH_BOOKKEEPING = {"_graph", "_lineno_map", "_prologue_start", "meta", "shape_env", "range_constraints",
                      "train", "eval"}  # fmt: skip

# Modules whose hooks record outputs: open taps, and the hidden states and attention maps that a model returns.
_RECORDING = ("kdkit.nets.taps.", "transformers.utils.output_capturing")

_ANNOTATIONS = "__annotat"  # of `__annotations__`, and of `__annotate__` from Python 3.14 on


class Digest:
    """SHA-256 digests of values that may refer to each other. Raises CacheError for a value that cannot be keyed."""

    def __init__(self) -> None:
        self._tensors, self._attributes = hashlib.sha256(), hashlib.sha256()
        self._code: dict[str, Any] = {}  # qualified name of a function -> sha256 of its source
        self._packages: set[str] = set()
        self._seen: dict[int, tuple[int, object]] = {}  # keeps the objects alive, so that no id is reused

    def facts(self) -> dict[str, Any]:
        """Return separate digests of tensors, attributes and code, so that two keys can be compared by eye."""
        digests = {"tensors": self._tensors.hexdigest(), "attributes": self._attributes.hexdigest()}
        code = {name: digest.hexdigest()[:32] for name, digest in self._code.items()}
        return {**digests, "code": code, "packages": sorted(self._packages)}

    def hexdigest(self) -> str:
        """Return a single digest of all facts."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()

    def add(self, value: Any, path: str) -> "Digest":
        """Add a value and everything that it holds or refers to. `path` is its name in error messages."""
        kind = type(value)
        if kind in _SIMPLE:
            self._update(kind.__name__, repr(value))
            return self
        if kind not in (tuple, frozenset):  # the interpreter may or may not merge equal constants into one object
            if id(value) in self._seen:
                self._update("again", str(self._seen[id(value)][0]))
                return self
            self._seen[id(value)] = (len(self._seen), value)
        if len(self._seen) > _MAX_VALUES:
            raise CacheError(f"{path} leads to more than {_MAX_VALUES:,} values")
        if name := DYNAMIC.get(id(value)):
            raise CacheError(f"{path} uses {name}, which can read any value; read the values elsewhere, and pass them")
        if isinstance(value, Tensor):
            self._add_tensor(value, path)
        elif isinstance(value, nn.Module):
            self._add_module(value, path)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, types.FunctionType):
            self._add_function(value, path)
        elif kind in (dict, types.MappingProxyType):
            self._update("dict", str(len(value)))
            for name, item in value.items():
                self.add(name, path).add(item, f"{path}[{name!r}]" if type(name) in _SIMPLE else path)
        elif kind in (list, tuple):
            self._update(kind.__name__, str(len(value)))
            for index, item in enumerate(value):
                self.add(item, f"{path}[{index}]")
        elif kind in (set, frozenset):  # sorted by digest: the order of a set differs between processes
            self._update(kind.__name__, *sorted(Digest().add(item, path).hexdigest() for item in value))
        else:
            self._add_object(value, path)
        return self

    def _update(self, *words: str) -> None:
        for word in words:  # with its length, so that ("ab", "c") and ("a", "bc") differ
            content = word.encode(errors="surrogatepass")
            self._attributes.update(len(content).to_bytes(8, "little") + content)

    def _add_package(self, package: str, module: object, name: str) -> None:
        self._packages.add(package)
        self._update("installed", str(module), name)

    def _add_tensor(self, tensor: Tensor, path: str) -> None:
        # User code may set attributes on a tensor. Attributes of torch.compile depend on earlier compilations.
        attributes = {name: value for name, value in vars(tensor).items() if not name.startswith("_dynamo")}
        if is_traceable_wrapper_subclass(tensor):  # such as quantized weights, whose values are in inner tensors
            names, context = tensor.__tensor_flatten__()
            self._update("wrapper", str(tensor.dtype), str(tuple(tensor.shape)))
            self.add(type(tensor), path).add([getattr(tensor, name) for name in names], path).add(context, path)
            self.add(attributes or None, path)
            return
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise CacheError(f"{path} is a tensor whose bytes cannot be read")
        content = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
        self._update("tensor", str(tensor.dtype), str(tuple(tensor.shape)))
        self._tensors.update(content.reshape(-1).view(torch.uint8).numpy().data if content.numel() else b"")
        self.add(type(tensor), path).add(attributes or None, path)

    def _add_module(self, module: nn.Module, path: str) -> None:
        self.add(type(module), path).add(_torch_hooks(module, path), path)
        attributes = {name: value for name, value in vars(module).items() if name not in _MODULE_STATE}
        if type(module).__name__ == "OptimizedModule":  # torch.compile: a submodule is the original, the rest is caches
            attributes = {}
        elif isinstance(module, GraphModule):  # torch.fx: runs the function that is generated from the graph
            attributes = {name: value for name, value in attributes.items() if name not in _GRAPH_BOOKKEEPING}
            self.add(type(module).forward, path)
        elif isinstance(module, nn.RNNBase):  # weak references to its weights
            attributes.pop("_flat_weight_refs", None)
        elif type(module).__name__ == "GuardsFn":  # torch.export: only checks the inputs
            attributes = {}
        for members in (module._parameters, module._buffers, module._modules, attributes):
            self._update(str(len(members)))
            for name, value in members.items():
                self._update(name)
                self.add(value, f"{path}.{name}")

    def _add_class(self, kind: type) -> None:
        for base in kind.__mro__:
            if package := package_of(base.__module__):
                self._add_package(package, base.__module__, base.__qualname__)
                continue
            self._update("class", base.__qualname__)  # without its module: a recipe file may be loaded under any name
            for name, member in vars(base).items():
                if not _is_bookkeeping(base, name, member):
                    self._update(name)
                    self.add(member, f"{base.__qualname__}.{name}")

    def _add_function(self, function: types.FunctionType, path: str) -> None:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        closure = {name: None if cell == types.CellType() else cell.cell_contents for name, cell in cells}
        if package := package_of_file(function.__code__.co_filename):
            self._add_package(package, function.__module__, function.__qualname__)
            if package_of(function.__module__ or "builtins"):  # otherwise a wrapper: @torch.no_grad() around user code
                inner = (types.FunctionType, nn.Module)
                self.add([held for held in closure.values() if isinstance(held, inner)], path)
                return
        else:
            text, tree = source_of(function, path)
            self._update("function", function.__qualname__)
            self._code.setdefault(function.__qualname__, hashlib.sha256()).update(text.encode())
            for name, value in references(function, tree, closure):
                self._update(name)
                self.add(value, f"{path}: {name}")
        held = [value for value in closure.values() if not is_user_module(value)]  # references() handles modules
        self.add([function.__defaults__, function.__kwdefaults__, held, vars(function)], path)

    def _add_object(self, value: Any, path: str) -> None:
        if isinstance(value, types.ModuleType):
            package = package_of(value.__name__)
            if package is None:
                raise CacheError(
                    f"{path} is the module {value.__name__}, used as a value, so the source does not show what is "
                    "taken from it; use its functions and values instead"
                )
            self._add_package(package, value.__name__, "")
        elif isinstance(value, types.BuiltinFunctionType) and value.__module__ is not None:
            package = package_of(value.__module__)
            if package is None:
                raise CacheError(
                    f"{path} is compiled code that is in no installed package: {value.__module__}.{value.__name__}"
                )
            self._add_package(package, value.__module__, value.__qualname__)
        elif isinstance(value, Graph | Node):  # torch.fx: their text has every operation and argument
            self._update(type(value).__name__, str(value))
        elif isinstance(value, logging.Logger):  # holds locks, and does not affect outputs
            self._update("logger", value.name)
        elif isinstance(value, types.MethodType | staticmethod | classmethod | property | functools.cached_property):
            self.add([getattr(value, name, None) for name in ("__func__", "__self__", "fget", "fset", "func")], path)
        else:
            self._add_state(value, path)

    def _add_state(self, value: Any, path: str) -> None:
        """Add any other object: its class, its attributes, and the state that pickle would save."""
        # Read before the state, which for a partial has its `__dict__` only after the first access. An alias such as
        # `tuple[int]` has that of `tuple`.
        attributes = {} if isinstance(value, types.GenericAlias) else getattr(value, "__dict__", {})
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            state = reduce(value) if reduce else value.__reduce_ex__(2)  # fails for a lock, a file, a generator
        except Exception as error:  # user code and C extensions may raise anything
            raise CacheError(f"{path} is a {type(value).__qualname__}, whose contents cannot be read") from error
        self.add(type(value), path)
        for name, attribute in attributes.items():
            if not name.startswith(_ANNOTATIONS):  # functools.wraps copies those of a function
                self._update(name)
                self.add(attribute, f"{path}.{name}")
        parts = (state,) if isinstance(state, str) else state  # a str is the name of a global, such as "float32"
        self.add([list(part) if isinstance(part, Iterator) else part for part in parts], path)


def _is_bookkeeping(kind: type, name: str, member: Any) -> bool:
    """Whether a class member cannot change outputs: annotations, `__slots__`, or code that dataclasses generate."""
    if name.startswith(("_abc_", "_is_protocol", "_is_runtime_protocol", _ANNOTATIONS)):
        return True
    if name in _GENERATED and isinstance(member, types.FunctionType):
        # The fields of a dataclass or named tuple are keyed as attributes of the instance.
        generates = hasattr(kind, "__dataclass_fields__") or hasattr(kind, "_field_defaults")
        file = member.__code__.co_filename
        return generates and (file.startswith("<") or package_of_file(file) is not None)
    if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
        return True
    return name.startswith("__") and name.endswith("__") and not callable(member) and not hasattr(member, "__get__")


def _torch_hooks(module: nn.Module, path: str) -> list[Any]:
    """Return torch's own hooks on a module, such as those of spectral_norm, without hooks that only record outputs.

    Raises CacheError if there is a user-defined hook.
    """
    registries = nn.modules.module
    kept = []
    for hooks in (module._forward_hooks, module._forward_pre_hooks,
                  registries._global_forward_hooks, registries._global_forward_pre_hooks):  # fmt: skip
        for hook in hooks.values():
            origin = getattr(hook, "__module__", None) or type(hook).__module__
            if origin.split(".")[0] == "torch":
                kept.append(hook)
            elif not origin.startswith(_RECORDING):
                name = getattr(hook, "__qualname__", type(hook).__qualname__)
                raise CacheError(f"{path} has a user-defined forward hook ({name}), which may do anything")
    return kept
