"""Read a recipe file: a Python file with a function recipe(), whose parameters become options of the command line."""

import importlib.util
import inspect
import shlex
import sys
import traceback
import types
import typing
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.machinery import SOURCE_SUFFIXES, SourceFileLoader
from pathlib import Path
from typing import Any

from kdkit.errors import KdkitError, PluginWarning, RecipeError, Terminated, did_you_mean
from kdkit.plugins.manager import installed, undecorated_hooks
from kdkit.plugins.parameters import Parameter, parameters_of
from kdkit.utils.files import is_file

# Functions that need torch import it late, because `kdkit --help` loads this module and must not load torch.

ROOT = Path(__file__).parents[2]  # of a checkout of kdkit


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A loaded recipe file. It is also a plugin, so its hooks are active."""

    path: Path
    module: types.ModuleType

    @property
    def description(self) -> str:
        """The docstring of the file; empty if there is none."""
        return inspect.getdoc(self.module) or ""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of recipe(). Raises RecipeError if one cannot be an option."""
        function = self.module.recipe
        try:
            hints = typing.get_type_hints(function)
        except Exception as error:  # evaluates annotations in quotes, which may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise RecipeError(f"{self.path}: the type of a parameter of recipe() is unknown: {reason}") from error
        docstring = inspect.getdoc(function) or ""
        return parameters_of(self.path, function, hints, docstring)

    def make(self, options: Mapping[str, Any]) -> Any:
        """Call recipe() with these options and return its Recipe.

        Raises RecipeError if recipe() has no such parameter, raises, or returns anything else.
        """
        from kdkit.recipe.recipe import Recipe

        names = [parameter.name for parameter in self.parameters]
        unknown = [name for name in options if name not in names]
        if unknown:
            raise RecipeError(
                f"{self.path}: recipe() has no parameter {unknown[0]!r}; {did_you_mean(unknown[0], names)}"
            )
        with recipe_errors(self.path, "recipe() raises"):
            recipe = self.module.recipe(**options)
        if inspect.iscoroutine(recipe):
            recipe.close()  # otherwise Python warns that it was never awaited
        if not isinstance(recipe, Recipe):
            raise RecipeError(f"{self.path}: recipe() returns a {type(recipe).__name__}; expected a kdkit.Recipe")
        return recipe


def read_recipe_file(path: Path) -> RecipeFile:
    """Read a recipe file and add it to the plugins. Raises RecipeError if it cannot be read or has no recipe().

    The file is read before its options are parsed, so random numbers that its body draws outside of recipe() follow a
    seed of 0 instead of --seed. The file becomes an importable module, so that data loader workers can import the
    classes that it defines. If another module has its name, it gets a different one.
    """
    with _import_file(path) as module:
        if not callable(getattr(module, "recipe", None)):
            functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
            hint = f"; {did_you_mean('recipe', functions)}" if functions else ""
            raise RecipeError(f"{path} has no function recipe(), which returns the Recipe to run{hint}")
    # Named with its suffix, so that a recipe "timm.py" does not conflict with a plugin "timm".
    plugins, plugin_name = installed(), path.name
    plugins.remove(plugins.manager.get_plugin(plugin_name))  # an earlier load of the same file
    plugins.add(module, plugin_name)
    if without_decorator := undecorated_hooks(module):
        warnings.warn(
            f"{path} has functions that are never called; decorate its {', '.join(without_decorator)} with "
            "@kdkit.hookimpl",
            PluginWarning,
            stacklevel=2,
        )
    return RecipeFile(path, module)


def load_file(path: Path) -> types.ModuleType:
    """Read any Python file like `read_recipe_file`, but not as a plugin. Raises RecipeError if it cannot be read."""
    with _import_file(path) as module:
        return module


@contextmanager
def recipe_errors(path: Path, activity: str) -> Iterator[None]:
    """Raise exceptions of user code as RecipeError with the file and line.

    activity: what runs the code, for the message, such as "recipe() raises". A KdkitError passes unchanged.
    """
    try:
        yield
    except (KdkitError, Terminated):  # SIGTERM ended a run in recipe()
        raise
    except SystemExit as error:
        raise RecipeError(f"{path}: {activity} SystemExit; recipe() must return a Recipe") from error
    except SyntaxError as error:
        location = error.filename or path  # the error may be in a file that the recipe imports
        line = f", line {error.lineno}" if error.lineno else ""
        message = ": ".join(filter(None, (error.msg, (error.text or "").strip())))
        raise RecipeError(f"{location}{line}: {message}") from error
    except Exception as error:
        # The innermost line of the recipe file. Lines of libraries would not help the user.
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _same(Path(frame.filename), path)]
        location = f"{path}, line {frames[-1].lineno}" if frames else path
        raise RecipeError(f"{location}: {activity} {type(error).__name__}: {error}") from error


class _RecipeLoader(SourceFileLoader):
    """Writes no bytecode next to a recipe file, because reading the copy in a run folder must not change the folder."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write nothing."""


@contextmanager
def _import_file(path: Path) -> Iterator[types.ModuleType]:
    """Import a file. If this, or the body of the with-statement, fails, undo the changes to the import system.

    The module is put into `sys.modules` and its folder first into `sys.path`, as Python does for a script. The folder
    stays there only if the module has the name of the file; otherwise `import <stem>` must find the other module.
    """
    if path.is_dir():
        is_run = (path / "run.json").is_file()
        command = f"kdkit run --resume {shlex.quote(str(path))}"
        advice = f"to resume the run in it: {command}" if is_run else "a recipe is a Python file"
        raise RecipeError(f"{path} is a folder; {advice}")
    if not is_file(path):
        raise RecipeError(f"{path}: there is no such recipe file{_near_file(path)}")
    from kdkit.utils.randomness import seed_everything  # imports torch, for which these errors need not wait

    name = path.stem if _is_free(path) else f"kdkit_recipe_{path.stem}"
    if path.suffix not in SOURCE_SUFFIXES:
        raise RecipeError(f"{path} is not a Python file; a recipe file ends in .py")
    spec = importlib.util.spec_from_file_location(name, path, loader=_RecipeLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder, previous = str(path.parent.resolve()), sys.modules.get(name)
    sys.modules[name] = module  # before its code runs, because dataclasses and pickle look up their module there
    sys.path.insert(0, folder)
    try:
        seed_everything(0)
        with recipe_errors(path, "reading it raises"):
            spec.loader.exec_module(module)
        yield module
    except BaseException:
        sys.path.remove(folder)
        sys.modules.pop(name, None)
        sys.modules.update({} if previous is None else {name: previous})
        raise
    if name != path.stem or sys.path.count(folder) > 1:
        sys.path.remove(folder)


def _near_file(path: Path, root: Path = ROOT) -> str:
    """Return the most similar file, or the folder of the examples if the missing file may be one; otherwise ""."""
    names = [file.name for file in path.parent.glob("*.py")]
    if matches := get_close_matches(path.name, names, n=1):
        return f"; did you mean {path.parent / matches[0]}?"
    folder = root / "examples"
    # If kdkit is installed in site-packages, a folder "examples" there belongs to another package.
    is_checkout = (root / "pyproject.toml").is_file()
    if is_checkout and (folder / path.name).is_file():
        return f"; did you mean {folder / path.name}?"
    if "examples" not in path.parts:
        return ""
    if is_checkout:
        return f"; the examples are in {folder}"
    return "; the examples are in the folder `examples` of kdkit's repository, and are not installed with it"


def _is_free(path: Path) -> bool:
    """Whether `import <stem>` finds this file or nothing, so that its module may have the name of the file."""
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        return _same(Path(getattr(loaded, "__file__", None) or "?"), path)
    if not path.stem.isidentifier():
        return False
    try:
        spec = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):
        return False
    return spec is None or _same(Path(spec.origin or "?"), path)


def _same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()
