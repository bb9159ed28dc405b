"""Bring what a cell needs to another process: functions and classes by their file and name, never by their code."""

import importlib
import importlib.util
import io
import pickle
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import cache, partial
from importlib.metadata import packages_distributions
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from kdkit.errors import RecipeError, WorkerError, first_line
from kdkit.plugins.manager import installed
from kdkit.plugins.recipe_file import load_file, read_recipe_file

MAIN = "__main__"
Told = tuple[bytes, str, str]


READING: ContextVar[Path | None] = ContextVar("READING", default=None)  # the file that is read to find a recipe


def require_not_reading() -> None:
    """Raise RecipeError where a file, as it is read for its cells, runs the study that they are of."""
    if READING.get() is not None:
        raise RecipeError(
            f"{READING.get()} runs a study as it is read, and each process that runs its cells must read it; put what "
            "runs the study under `if __name__ == '__main__':`"
        )


def packed(thing: object, what: str) -> bytes:
    """Pickle a thing. Raises RecipeError, which says what it is, where another process could not find all of it."""
    stream = io.BytesIO()
    try:
        _Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(thing)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RecipeError(
            f"{what} cannot be brought to another process: {first_line(error)}; functions and classes are found there "
            "by their names at the top of a file, and all else is pickled"
        ) from error
    return stream.getvalue()


def require_packable(callbacks: Sequence[object]) -> None:
    """Raise RecipeError for a watcher that cannot be brought to another process."""
    for each in callbacks:
        packed(each, f"watcher {type(each).__name__}")


def packed_error(error: BaseException) -> Told:
    """Return an error as another process can read it: as it is where it can be pickled, and in words."""
    trace = "".join(traceback.format_exception(error))
    try:
        return pickle.dumps(error), _said(error), trace
    except Exception:  # a stranger's error may hold anything
        return b"", _said(error), trace


def unpacked_error(told: Told) -> Exception:
    """Return the error again, or a WorkerError that says the same where this process cannot make it."""
    data, said, trace = told
    error: object = None
    with suppress(Exception):  # it may take other arguments than it keeps, or be of a class that only a recipe file has
        error = _Known(io.BytesIO(data)).load()
    if not isinstance(error, Exception) or _said(error) != said:
        error = WorkerError(said)
    error.add_note(f"In the process that ran the cell:\n{trace}")
    return error


class _Pickler(pickle.Pickler):
    """Takes functions and classes by file and name, so that a script or a recipe file need be no installed module."""

    def reducer_override(self, thing: Any) -> Any:
        if not isinstance(thing, FunctionType | type):
            return NotImplemented
        module = sys.modules.get(thing.__module__)
        file = getattr(module, "__file__", None)
        if thing.__module__ == MAIN and not str(file).endswith(".py"):  # pickle would take the other process's own main
            raise pickle.PicklingError(f"{thing.__qualname__} stands in no file that ends in .py")
        if module is None or file is None or not file.endswith(".py") or "<" in thing.__qualname__:
            return NotImplemented
        if module.__name__.partition(".")[0] in _everywhere():
            return NotImplemented
        if _named(module, thing.__qualname__) is not thing:  # pickle itself says so of what has another's name
            return NotImplemented
        spec = getattr(module, "__spec__", None)
        name = spec.name if spec is not None else module.__name__
        place = partial(found, str(Path(file).resolve()), name, is_plugin=installed().manager.is_registered(module))
        return place, (thing.__qualname__,)


@cache
def _everywhere() -> frozenset[str]:
    """Return the names under which any process finds what it imports: Python's own and what is installed."""
    return sys.stdlib_module_names | {"kdkit"} | packages_distributions().keys()


class _Known(pickle.Unpickler):
    """Takes only classes of modules that are imported here already: to read an error must run no file."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules:
            raise pickle.UnpicklingError(f"{module} is not imported here")
        return super().find_class(module, name)


def found(file: str, module: str, name: str, *, is_plugin: bool = False) -> Any:
    """Return a function or a class by its file, the module that file is, and its name in it.

    Raises RecipeError where it is not there.
    """
    thing = _named(_module(Path(file), module, is_plugin=is_plugin), name)
    if thing is None:
        raise RecipeError(f"{file} has no {name!r} any more; it changed since its cell was made")
    return thing


def _named(thing: Any, name: str) -> Any:
    """Return what a name with dots stands for in a module; None where there is nothing."""
    for part in name.split("."):
        thing = getattr(thing, part, None)
    return thing


def _module(path: Path, name: str, *, is_plugin: bool) -> ModuleType:
    """Return the module that a file is: as it was imported here, by its name where that finds it, or read anew."""
    reading = READING.set(path)
    try:
        return _read(path, name, is_plugin=is_plugin)
    finally:
        READING.reset(reading)


def _read(path: Path, name: str, *, is_plugin: bool) -> ModuleType:
    for each in (name, path.stem, f"kdkit_recipe_{path.stem}"):
        there = sys.modules.get(each)
        if each != MAIN and there is not None and _is(getattr(there, "__file__", None), path):
            return there
    if is_plugin:
        return read_recipe_file(path).module
    if name != MAIN and name not in sys.modules:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            spec = None
        if spec is not None and _is(spec.origin, path):
            return importlib.import_module(name)
    return load_file(path)


def _is(file: str | None, path: Path) -> bool:
    return file is not None and Path(file).resolve() == path


def _said(error: BaseException) -> str:
    """Return what an error says, after its name where it is none of kdkit's."""
    name = type(error).__name__
    return str(error) if isinstance(error, WorkerError) else f"{name}: {error}"
