"""Read a recipe file: an ordinary Python file with a function recipe(), whose parameters are the command's options."""

import importlib.util
import inspect
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from kdkit.errors import KdkitError, RecipeError, did_you_mean
from kdkit.plugins.manager import installed

SIMPLE = (int, float, str, bool, Path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of recipe(): its type without None, whether it takes several values, its default, what it is for."""

    name: str
    help: str
    type: Any
    several: bool
    default: Any
    required: bool

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a Literal; none for other types."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe file that has been read. It is a plugin too, so a hook in it is known from now on."""

    path: Path
    module: types.ModuleType

    @property
    def text(self) -> str:
        """What the file says of itself."""
        return inspect.getdoc(self.module) or ""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of recipe(). Raises RecipeError for one that cannot be an option."""
        function = self.module.recipe
        try:
            hints = typing.get_type_hints(function)
        except Exception as error:  # an annotation in quotes is evaluated, and may raise whatever code may
            reason = f"{type(error).__name__}: {error}"
            raise RecipeError(f"{self.path}: the type of a parameter of recipe() is unknown: {reason}") from error
        signature = inspect.signature(function)
        told = _told_of_parameters(inspect.getdoc(function) or "")
        return tuple(
            _parameter(self.path, each, hints, told.get(each.name, "")) for each in signature.parameters.values()
        )

    def make(self, options: Mapping[str, Any]) -> Any:
        """Call recipe() with these options. Raises RecipeError if it raises or does not return a Recipe."""
        from kdkit.recipe.recipe import Recipe  # imports torch, which --help does without

        unknown = [name for name in options if name not in {each.name for each in self.parameters}]
        if unknown:
            known = [each.name for each in self.parameters]
            raise RecipeError(
                f"{self.path}: recipe() has no parameter {unknown[0]!r}; {did_you_mean(unknown[0], known)}"
            )
        with _told(self.path, "recipe() raises"):
            made = self.module.recipe(**options)
        if inspect.iscoroutine(made):
            made.close()  # or Python would warn that nobody awaited it
        if not isinstance(made, Recipe):
            raise RecipeError(f"{self.path}: recipe() returns a {type(made).__name__}; expected a kdkit.Recipe")
        return made


def read_recipe_file(path: Path) -> RecipeFile:
    """Read a recipe file and add it to the plugins. Raises RecipeError where it cannot be one.

    The file is read before its options are known, so what its body draws at random, outside recipe(), follows a seed of
    0 and not --seed. It becomes a module of its own name, and its folder stays where modules are looked for, so that
    the workers that fetch batches can import what it defines; not so where that name is another module's.
    """
    with _loading(path) as module:
        if not callable(getattr(module, "recipe", None)):
            functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
            hint = f"; {did_you_mean('recipe', functions)}" if functions else ""
            raise RecipeError(f"{path} has no function recipe(), which returns the Recipe to run{hint}")
    plugins, plugin = installed(), path.name  # with its ending, so that a recipe may be called as a plugin is
    plugins.remove(plugins.manager.get_plugin(plugin))
    plugins.add(module, plugin)
    return RecipeFile(path, module)


def load_file(path: Path) -> types.ModuleType:
    """Read a Python file as `read_recipe_file` does, but any file, and not as a plugin.

    Raises RecipeError where it cannot be read.
    """
    with _loading(path) as module:
        return module


@contextmanager
def _loading(path: Path) -> Iterator[types.ModuleType]:
    """Read a file; what was changed for it is put back where this, or what is done with its module, fails."""
    from kdkit.utils.randomness import seed_everything  # imports torch, which --help does without

    if not path.is_file():
        raise RecipeError(f"{path}: there is no such recipe file" if not path.is_dir() else f"{path} is a folder")
    name = path.stem if _free(path) else f"kdkit_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path} is not a Python file; a recipe file ends in .py")
    module = importlib.util.module_from_spec(spec)
    with _importable(module, path):
        seed_everything(0)
        with _told(path, "reading it raises"):
            spec.loader.exec_module(module)
        yield module


def _free(path: Path) -> bool:
    """Whether `import <stem>` finds this file or nothing, so that a module of this name is in nobody's way."""
    there = sys.modules.get(path.stem)
    if there is not None:
        return _same(Path(getattr(there, "__file__", None) or "?"), path)
    if not path.stem.isidentifier():
        return False
    try:
        found = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):
        return False
    return found is None or _same(Path(found.origin or "?"), path)


@contextmanager
def _importable(module: types.ModuleType, path: Path) -> Iterator[None]:
    """Put a module among those imported and its folder first among those looked in, as Python does for a script.

    If it fails all is put back. If it succeeds they stay, the folder only where the module has the file's own name:
    else `import <stem>` is to find the other module.
    """
    name, folder = module.__name__, str(path.parent.resolve())
    before = sys.modules.get(name)
    sys.modules[name] = module
    sys.path.insert(0, folder)
    try:
        yield
    except BaseException:
        sys.path.remove(folder)
        sys.modules.pop(name, None)
        sys.modules.update({} if before is None else {name: before})
        raise
    if name != path.stem or folder in sys.path[1:]:
        sys.path.remove(folder)


class _told:  # noqa: N801  # reads as a word: `with _told(path, ...)`
    """Turn whatever a user's code raises into a RecipeError that says where."""

    def __init__(self, path: Path, doing: str) -> None:
        self.path = path
        self.doing = doing

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, trace: types.TracebackType | None) -> None:
        if isinstance(error, SystemExit):
            raise RecipeError(f"{self.path}: {self.doing} SystemExit; a recipe file returns its Recipe") from error
        if error is None or not isinstance(error, Exception) or isinstance(error, KdkitError):
            return
        if isinstance(error, SyntaxError):
            where = error.filename or self.path  # a helper's, where that is the one at fault
            line = f", line {error.lineno}" if error.lineno else ""
            said = ": ".join(filter(None, (error.msg, (error.text or "").strip())))
            raise RecipeError(f"{where}{line}: {said}") from error
        frames = [frame for frame in traceback.extract_tb(trace) if _same(Path(frame.filename), self.path)]
        where = f"{self.path}, line {frames[-1].lineno}" if frames else str(self.path)
        raise RecipeError(f"{where}: {self.doing} {type(error).__name__}: {error}") from error


def _told_of_parameters(text: str) -> dict[str, str]:
    """Return what a docstring says of each parameter, in paragraphs that begin with "name: "."""
    paragraphs = re.findall(r"^(\w+): (.+(?:\n(?!\w+: )\S.*)*)", text, flags=re.MULTILINE)
    return {name: " ".join(said.split()) for name, said in paragraphs}


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _parameter(path: Path, parameter: inspect.Parameter, hints: Mapping[str, Any], told: str) -> Parameter:
    name = parameter.name
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
        raise RecipeError(f"{path}: recipe() takes named parameters with types, which are its options; got {parameter}")
    if name not in hints:
        raise RecipeError(f"{path}: parameter {name!r} of recipe() has no type; write {name}: int = ... or the like")
    kind, several = _unwrapped(hints[name])
    if kind not in SIMPLE and not (get_origin(kind) is Literal and len({type(each) for each in get_args(kind)}) == 1):
        raise RecipeError(
            f"{path}: parameter {name!r} of recipe() is a {hints[name]}; an option is int, float, str, bool, Path, "
            "a Literal of one kind, one of these or None, or a tuple[...] of one"
        )
    required = parameter.default is parameter.empty
    return Parameter(
        name=name,
        help=told,
        type=kind,
        several=several,
        default=None if required else parameter.default,
        required=required,
    )


def _unwrapped(hint: Any) -> tuple[Any, bool]:
    """Return the type without its `| None`, and without the tuple or list around it."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        inner = [each for each in get_args(hint) if each is not type(None)]
        if len(inner) != 1:
            return hint, False
        hint = inner[0]
    if get_origin(hint) in (tuple, list):
        inner = [each for each in get_args(hint) if each is not Ellipsis]
        return (inner[0], True) if len(set(inner)) == 1 else (hint, False)
    return hint, False
