"""What runs where a function or a class is used: what it refers to, what it adds, and which package it is of."""

import dis
import functools
import importlib.metadata
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdkit.errors import AnswersError


@functools.cache
def library(module: str) -> str | None:
    """Return the version of the installed package, or of Python, that a module belongs to; None for code of one's own.

    A package that is installed to be edited is code of one's own.
    """
    top = module.split(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    file = getattr(sys.modules.get(module) or sys.modules.get(top), "__file__", None)
    homes = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    if file is None or not any(home in Path(file).parents for home in homes):
        return None
    try:
        return f"{top} {importlib.metadata.version(top)}"
    except importlib.metadata.PackageNotFoundError:  # its modules and its package are called differently
        return f"{top} {Path(file).stat().st_size} {Path(file).stat().st_mtime_ns}"


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Give what a class adds that can change what it does: functions, descriptors and plain values, but no notes."""
    for name, value in vars(kind).items():
        notes = name.startswith("__") and name.endswith("__") and not callable(value)
        if not notes and not name.startswith("_abc_") and name not in ("_is_protocol", "_is_runtime_protocol"):
            yield name, value


def referred(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Give the globals that a function refers to, by name; of a module that is no library, what is taken from it."""
    space = function.__globals__
    codes = [function.__code__]
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        for name in dict.fromkeys(each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"):
            value = space.get(name)
            yield name, value
            if isinstance(value, types.ModuleType) and library(value.__name__) is None:
                yield from ((f"{name}.{each}", vars(value)[each]) for each in code.co_names if each in vars(value))


def enclosed(function: types.FunctionType) -> list[Any]:
    """Return what a function has from the functions around it; None for what is not there yet."""
    return [_content(cell) for cell in function.__closure__ or ()]


def attributes(value: Any, where: str) -> Any:
    """Return what an object holds; how it would be pickled where it has no attributes.

    Raises AnswersError for what lives outside Python, such as a lock.
    """
    slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
    if slots or hasattr(value, "__dict__"):
        return {name: getattr(value, name) for name in slots}, dict(getattr(value, "__dict__", {}))
    try:
        return value.__reduce_ex__(2)
    except Exception as error:  # whatever a stranger's type raises
        raise AnswersError(f"{where} is a {type(value).__qualname__}, whose content cannot be told") from error


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(each for each in slots if each != "__weakref__")
