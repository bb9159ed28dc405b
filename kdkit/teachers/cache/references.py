"""What a function's code refers to outside itself: globals, and what it takes from modules of one's own."""

import builtins
import dis
import importlib
import importlib.util
import os
import re
import sys
import types
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeGuard

from kdkit.errors import CacheError
from kdkit.teachers.cache.code import enclosed, installed, library

_SEARCHES: dict[str, dict[str, Any]] = {  # what finds values that no code names, by module and name
    module.__name__: {name: getattr(module, name) for name in names if hasattr(module, name)}
    for module, names in (
        (os, ("environ", "environb", "getenv", "getenvb")),
        (sys, ("modules",)),
        (importlib, ("import_module",)),
        (builtins, ("globals", "eval", "exec", "__import__")),
    )
}
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


def referred(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Give what a function refers to, by name: globals, what it imports as it runs, and what it takes from modules.

    A module of one's own counts by what is taken from it, down its submodules. Raises CacheError where one is handed
    on, since anything may be taken from it then, where one would be loaded only later, and where values are found by
    names that no code tells, as in `os.environ`.
    """
    codes = [_instructions(code) for code in _codes(function.__code__)]
    _require_named(codes, function)
    modules: dict[tuple[bool, str], types.ModuleType] = {}  # by whether it is a global, and its name
    for name, content in zip(function.__code__.co_freevars, enclosed(function), strict=True):
        if of_ones_own(content):
            modules[False, name] = content
    for code in codes:
        for name, stored, value in _imported(code, function):
            if of_ones_own(value):
                modules[False, stored] = value
            else:
                yield name, value
        for name in dict.fromkeys(each.argval for each in code if each.opname in _GLOBAL):
            value = function.__globals__.get(name)
            if of_ones_own(value):
                modules[True, name] = value
            elif name != "__name__":
                yield name, value
    for code in codes:
        yield from _taken(code, modules, function.__qualname__)


def searches(value: Any) -> str | None:
    """Return the name of what finds values that no code names, as `os.environ`; None for anything else."""
    names = (f"{module}.{name}" for module, has in _SEARCHES.items() for name, each in has.items() if each is value)
    return next((name.removeprefix("builtins.") for name in names), None)


def of_ones_own(value: Any) -> TypeGuard[types.ModuleType]:
    """Whether it is a module that no installed package brings."""
    return isinstance(value, types.ModuleType) and library(value.__name__) is None


def _taken(
    code: list[dis.Instruction], modules: dict[tuple[bool, str], types.ModuleType], where: str
) -> Iterator[tuple[str, Any]]:
    """Give what code takes from modules, by its whole name, once each."""
    seen = set()
    for place, (each, _) in enumerate(pairwise(code)):
        for is_last, is_global, name in _loaded(each):
            path, value, step = name, modules.get((is_global, name)), place + 1
            if value is None:
                continue
            while of_ones_own(value):
                if not is_last or code[step].opname not in _ATTRIBUTE:
                    named = value.__name__
                    raise CacheError(
                        f"{where} hands on the module {named}, from which anything may be taken; hand on the functions "
                        "and values instead"
                    )
                attribute = code[step].argval
                path, value, step = f"{path}.{attribute}", _attribute(value, attribute), step + 1
            if path not in seen:
                seen.add(path)
                yield path, value


def _require_named(codes: list[list[dis.Instruction]], function: types.FunctionType) -> None:
    """Raise CacheError where code takes from Python itself what finds values by names that are no code."""
    held = {**function.__globals__, **dict(zip(function.__code__.co_freevars, enclosed(function), strict=True))}
    modules = {name: value.__name__ for name, value in held.items() if isinstance(value, types.ModuleType)}
    for code in codes:
        for place, (each, following) in enumerate(pairwise(code)):
            names = _loaded(each)
            found = [("builtins", name) for _, from_all, name in names if from_all and name not in function.__globals__]
            if names and following.opname in _ATTRIBUTE:
                found.append((modules.get(names[-1][2], ""), following.argval))
            if each.opname == "IMPORT_NAME" and (wanted := code[place - 1].argval):
                found = [(each.argval, name) for name in wanted]
            elif each.opname == "IMPORT_NAME":
                modules[_stored(code, place)] = each.argval.partition(".")[0]
            for module, name in found:
                if name in _SEARCHES.get(module, {}):
                    raise CacheError(
                        f"{function.__qualname__} uses {searches(_SEARCHES[module][name])}, by which it may find "
                        "anything; give it the values instead"
                    )


def _loaded(each: dis.Instruction) -> list[tuple[bool, bool, str]]:
    """Return the names that an instruction loads: whether it is the last, whether a global, and the name."""
    if "LOAD_FAST" not in each.opname and "DEREF" not in each.opname and each.opname not in _GLOBAL:
        return []
    names = each.argval if isinstance(each.argval, tuple) else (each.argval,)  # one instruction may hold two
    steps = [*zip(re.findall("LOAD_FROM|LOAD|STORE|DELETE", each.opname), names, strict=False)]
    loads = [(place, name) for place, (step, name) in enumerate(steps) if step.startswith("LOAD")]
    return [(place == len(steps) - 1, each.opname in _GLOBAL, name) for place, name in loads]


def _imported(code: list[dis.Instruction], function: types.FunctionType) -> Iterator[tuple[str, str, Any]]:
    """Give what code imports as it runs: its name, what it is stored as, and its value; of a library the version."""
    for place, each in enumerate(code):
        if each.opname != "IMPORT_NAME":
            continue
        level, wanted = code[place - 2].argval, code[place - 1].argval
        name = importlib.util.resolve_name("." * level + each.argval, _package(function.__globals__))
        module = _loaded_as(name, function.__qualname__)
        if not isinstance(module, types.ModuleType):
            yield name, "", module
        elif wanted:
            froms = [at for at in range(place, len(code)) if code[at].opname == "IMPORT_FROM"][: len(wanted)]
            for at, part in zip(froms, wanted, strict=True):
                yield f"{name}.{part}", _stored(code, at), _attribute(module, part)
        elif code[place + 1].opname == "IMPORT_FROM":  # import a.b as c
            yield name, _stored(code, place), module
        else:
            top = name.partition(".")[0]
            yield top, _stored(code, place), sys.modules[top]


def _loaded_as(name: str, where: str) -> types.ModuleType | str | None:
    """Return a module of one's own, the version of a library's, or None for what is nowhere."""
    top = name.partition(".")[0]
    module = sys.modules.get(name)
    if module is not None:
        return library(name) or library(top) or module
    spec = None if top in sys.modules else importlib.util.find_spec(top)
    file = getattr(sys.modules.get(top), "__file__", None) if spec is None else spec.origin
    if spec is None and top not in sys.modules:
        return None
    version = installed(top, file)
    if version is None:
        raise CacheError(f"{where} imports {name}, which is not loaded yet; import it at the top of the file")
    return version


def _attribute(module: types.ModuleType, name: str) -> Any:
    """Return what a module has under a name, also what it loads when asked for it; None where that is nothing."""
    return getattr(module, name, sys.modules.get(f"{module.__name__}.{name}"))


def _package(space: dict[str, Any]) -> str | None:
    name = str(space.get("__name__", ""))
    return space.get("__package__") or (name if "__path__" in space else name.rpartition(".")[0]) or None


def _stored(code: list[dis.Instruction], place: int) -> str:
    """Return the name that is stored next."""
    names = next(each.argval for each in code[place:] if each.opname.startswith("STORE_"))
    return str(names[0] if isinstance(names, tuple) else names)


def _instructions(code: types.CodeType) -> list[dis.Instruction]:
    return [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Give a code and all that is nested in it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _codes(each)
