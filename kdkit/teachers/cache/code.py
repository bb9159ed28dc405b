"""What runs where an object, a function or a class is used: what it holds or adds, and which package it is of."""

import enum
import functools
import importlib.metadata
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdkit.errors import CacheError

_PICKLING = ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")


@functools.cache
def library(module: str) -> str | None:
    """Return the version of the installed package, or of Python, that a module belongs to; None for code of one's own.

    A package that is installed to be edited is code of one's own.
    """
    top = module.split(".")[0]
    files = [getattr(sys.modules.get(name), "__file__", None) for name in (module, top)]
    return installed(top, files[0] or files[1])  # a module that is made in C may have none


def installed(top: str, file: str | None) -> str | None:
    """Return the version of the installed package of this name, or of Python, None where the file is of neither."""
    if top in sys.stdlib_module_names and top != "__main__" and (file is None or _is_in(file, "stdlib", "platstdlib")):
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    if file is None or not _is_in(file, "purelib", "platlib"):
        return None
    try:
        return f"{top} {importlib.metadata.version(top)}"
    except importlib.metadata.PackageNotFoundError:  # its modules and its package are called differently
        return f"{top} {Path(file).stat().st_size} {Path(file).stat().st_mtime_ns}"


def _is_in(file: str, *homes: str) -> bool:
    return any(Path(sysconfig.get_path(home)) in Path(file).parents for home in homes)


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Give what a class adds that can change what it does: functions, descriptors and plain values, but no notes."""
    for name, value in vars(kind).items():
        if issubclass(kind, enum.Enum) and _is_bookkeeping(kind, name, value):
            continue
        notes = name.startswith("__") and name.endswith("__") and not callable(value)
        if not notes and not name.startswith("_abc_") and name not in ("_is_protocol", "_is_runtime_protocol"):
            yield name, value


def enclosed(function: types.FunctionType) -> list[Any]:
    """Return what a function has from the functions around it; None for what is not there yet."""
    return [_content(trial) for trial in function.__closure__ or ()]


def attributes(value: Any, where: str) -> Any:
    """Return what an object holds: its attributes, and how it would be pickled where its type has a say in that.

    Raises CacheError for what lives outside Python, such as a lock.
    """
    slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
    own = {name: getattr(value, name) for name in slots}, dict(getattr(value, "__dict__", {}))
    try:
        pickled = value.__reduce_ex__(2)  # fails where a type keeps something in C and says nothing of it
    except Exception as error:  # whatever a stranger's type raises
        raise CacheError(f"{where} is a {type(value).__qualname__}, whose content cannot be told") from error
    plain = all(getattr(type(value), name, None) is getattr(object, name, None) for name in _PICKLING)
    return own if plain and (slots or hasattr(value, "__dict__")) else (own, pickled)


def _content(trial: types.CellType) -> Any:
    try:
        return trial.cell_contents
    except ValueError:
        return None


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(each for each in slots if each != "__weakref__")


def _is_bookkeeping(kind: type[enum.Enum], name: str, value: Any) -> bool:
    """Whether it is a member of an enum, or what Python notes about the members."""
    noted = name.startswith("_") and name.endswith("_") and not (callable(value) or isinstance(value, classmethod))
    return name in kind.__members__ or noted
