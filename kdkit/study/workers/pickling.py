"""Pickle jobs and errors for another process. Functions and classes are pickled as a file and a name, not as code."""

import hashlib
import importlib
import importlib.util
import io
import pickle
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import cache, partial
from importlib.metadata import packages_distributions
from pathlib import Path
from types import FunctionType, ModuleType
from typing import IO, Any, NamedTuple

from kdkit.errors import RecipeError, WorkerError, first_line
from kdkit.plugins.manager import installed
from kdkit.plugins.recipe_file import load_file, read_recipe_file

MAIN = "__main__"

# The file that this process is importing to find a recipe; None otherwise.
IMPORTING: ContextVar[Path | None] = ContextVar("IMPORTING", default=None)


class PackedError(NamedTuple):
    """An exception for another process. pickled: empty if it cannot be pickled."""

    pickled: bytes
    message: str
    trace: str


def require_guarded_script() -> None:
    """Raise RecipeError if a worker that imports a script for its recipes would run the script's study again."""
    if IMPORTING.get() is not None:
        raise RecipeError(
            f"{IMPORTING.get()} runs a study when it is imported, and each process that runs its trials imports it; "
            "move the code that runs the study below `if __name__ == '__main__':`"
        )


def pickle_object(value: object, description: str, sources: Mapping[Path, bytes] | None = None) -> bytes:
    """Return a value as a pickle that `pickle.loads` reads in another process.

    description: names the value in the error. sources: the content of files when this process imported them; a
    process that imports them later must find it unchanged. Raises RecipeError if the value holds a function or a class
    that another process cannot find, or anything else that cannot be pickled.
    """
    stream = io.BytesIO()
    digests = {str(file.resolve()): hashlib.sha256(source).hexdigest() for file, source in (sources or {}).items()}
    try:
        _Pickler(stream, digests).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RecipeError(
            f"{description} cannot be sent to another process: {first_line(error)}; functions and classes must be at "
            "the top level of a file, where that process finds them by name, and all other values must be picklable"
        ) from error
    return stream.getvalue()


def require_picklable(callbacks: Sequence[object]) -> None:
    """Raise RecipeError if a callback cannot be sent to another process."""
    for callback in callbacks:
        pickle_object(callback, f"callback {type(callback).__name__}")


def pack_error(error: BaseException) -> PackedError:
    """Return an exception in a form that another process can read: pickled if possible, and as text."""
    trace = "".join(traceback.format_exception(error))
    try:
        pickled = pickle.dumps(error)
    except Exception:  # the attributes of a user-defined error may be anything
        pickled = b""
    return PackedError(pickled, _message(error), trace)


def unpack_error(packed: PackedError) -> Exception:
    """Recreate the exception, or return a WorkerError with its message if this process cannot."""
    error: object = None
    # Fails if a recipe file defines the class, or if its __init__ passes on other arguments than it takes.
    with suppress(Exception):
        error = _ErrorUnpickler(io.BytesIO(packed.pickled)).load()
    if not isinstance(error, Exception) or _message(error) != packed.message:
        error = WorkerError(packed.message)
    error.add_note(f"In the process that ran the trial:\n{packed.trace}")
    return error


def find_object(file: str, module: str, name: str, *, is_plugin: bool, sha256: str | None) -> Any:
    """Return a function or a class by its file, the module of that file, and its name in the module.

    Unpickling calls this function. Raises RecipeError if the file does not define the name, or if it must be imported
    and its digest is not `sha256`.
    """
    reset = IMPORTING.set(Path(file))
    try:
        container = _imported(Path(file), module)
        if container is None:
            if sha256 is not None and hashlib.sha256(Path(file).read_bytes()).hexdigest() != sha256:
                raise RecipeError(
                    f"{file} changed after its trial was created; start the study again, in another folder"
                )
            container = _import_file(Path(file), module, is_plugin=is_plugin)
    finally:
        IMPORTING.reset(reset)
    value = _attribute(container, name)
    if value is None:
        raise RecipeError(f"{file} has no {name!r} any more; it changed after its trial was created")
    return value


class _Pickler(pickle.Pickler):
    """Pickles functions and classes as a file and a name, so that they may be in a script or a recipe file.

    Plain pickle stores only the name of the module, which another process cannot import if it is not installed.
    digests: by file, see `find_object`.
    """

    def __init__(self, stream: IO[bytes], digests: Mapping[str, str]) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self._digests = digests

    def reducer_override(self, value: Any) -> Any:
        """Return how to find a function or a class; NotImplemented leaves the value to plain pickle."""
        if not isinstance(value, FunctionType | type):
            return NotImplemented
        module = sys.modules.get(value.__module__)
        file = getattr(module, "__file__", None)
        # Plain pickle would look the name up in the other process's own main module.
        if value.__module__ == MAIN and not str(file).endswith(".py"):
            raise pickle.PicklingError(f"{value.__qualname__} is not defined in a file that ends in .py")
        # "<" is part of "<lambda>" and "<locals>", which have no name at the top level of the file.
        if module is None or file is None or not file.endswith(".py") or "<" in value.__qualname__:
            return NotImplemented
        if module.__name__.partition(".")[0] in _importable_everywhere():
            return NotImplemented
        if _attribute(module, value.__qualname__) is not value:  # plain pickle raises the error for it
            return NotImplemented
        spec = getattr(module, "__spec__", None)
        name = spec.name if spec is not None else module.__name__  # for `python -m package.script`, not "__main__"
        path, is_plugin = str(Path(file).resolve()), installed().manager.is_registered(module)
        find = partial(find_object, path, name, is_plugin=is_plugin, sha256=self._digests.get(path))
        return find, (value.__qualname__,)


@cache
def _importable_everywhere() -> frozenset[str]:
    """Return the top-level names that every process can import: the standard library and installed packages."""
    return sys.stdlib_module_names | {"kdkit"} | packages_distributions().keys()


class _ErrorUnpickler(pickle.Unpickler):
    """Uses only modules that are already imported, because reading an error must not run a user's file."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of a module that is already imported. Raises UnpicklingError otherwise."""
        if module not in sys.modules:
            raise pickle.UnpicklingError(f"{module} is not imported in this process")
        return super().find_class(module, name)


def _attribute(value: Any, name: str) -> Any:
    """Return an attribute by a dotted name such as "Outer.Inner"; None if it does not exist."""
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _imported(path: Path, name: str) -> ModuleType | None:
    """Return the module of a file if it is imported under any of the names that it may have; None otherwise."""
    for candidate in (name, path.stem, f"kdkit_recipe_{path.stem}"):  # the last is `read_recipe_file`'s second choice
        module = sys.modules.get(candidate)
        if candidate != MAIN and module is not None and _is_path(getattr(module, "__file__", None), path):
            return module
    return None


def _import_file(path: Path, name: str, *, is_plugin: bool) -> ModuleType:
    """Import a file so that its classes are the same objects in later pickles.

    In this order: as a recipe file, by its name, by its path.
    """
    if is_plugin:
        return read_recipe_file(path).module
    if name != MAIN and name not in sys.modules:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            spec = None
        if spec is not None and _is_path(spec.origin, path):
            return importlib.import_module(name)
    return load_file(path)


def _is_path(file: str | None, path: Path) -> bool:
    return file is not None and Path(file).resolve() == path


def _message(error: BaseException) -> str:
    """Return the message of an error, after the name of its class unless it is a WorkerError."""
    return str(error) if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"
