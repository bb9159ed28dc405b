"""The commands `kdkit new recipe` and `kdkit new plugin`, which write a file or a package to start from."""

import ast
import difflib
import importlib.util
import keyword
import re
import shlex
import shutil
import sys
from pathlib import Path

import click

from kdkit.cli.options import PATH
from kdkit.errors import KdkitError, PluginError
from kdkit.plugins.builtin import TEMPLATES
from kdkit.plugins.manager import Plugins, installed
from kdkit.utils.files import exists, require_output_folder, write_output
from kdkit.utils.printable import echo

_OWN_DATA = "own_data"  # the template of recipes that have no template of their name
PLUGIN = TEMPLATES / "plugin"  # the template of a plugin
_PLUGIN_NAME = "my_plugin"  # the name of the package in the template


@click.group(short_help="Write a recipe or a plugin to start from.")
def new() -> None:
    """Write a recipe or a plugin to start from."""


@new.command(short_help="Write a recipe, or list the templates.")
@click.argument("name", required=False)
@click.argument("path", required=False, type=PATH)
def recipe(name: str | None, path: Path | None) -> None:
    """Write a recipe file from the template NAME, or for your own data if there is no such template.

        kdkit new recipe lrhnet
        kdkit new recipe my_data

    Without NAME, list the templates. PATH is NAME.py by default.
    """
    templates = recipe_templates(installed())
    if name is None:
        width = max(map(len, templates))
        for template, file in templates.items():
            docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            echo(f"{template:{width}}  {docstring.splitlines()[0]}")
        return
    if path is None:
        path = Path(name if name.endswith(".py") else f"{name}.py")
    source = templates.get(name.removesuffix(".py"))
    if source is None:
        # A likely typo is rejected; my_data and my_digits are names of the user's choice.
        similar = difflib.get_close_matches(Path(name).stem, templates, n=1, cutoff=0.8)
        if similar and similar[0] not in name:
            raise KdkitError(
                f"there is no template {name!r}; did you mean {similar[0]!r}? For your own data: kdkit new recipe "
                f"{_OWN_DATA} FILE"
            )
        source = templates[_OWN_DATA]
    if exists(path):
        raise KdkitError(f"{path} exists; name another file: kdkit new recipe {name} FILE")
    if not path.parent.is_dir():
        raise KdkitError(f"{path.parent} is not a folder; create it first")
    text = source.read_text(encoding="utf-8")
    # The docstring of an example has commands with its path.
    for example in {word for word in text.split() if word.startswith("examples/") and word.endswith(".py")}:
        text = text.replace(example, path.as_posix())
    write_output(path, text, option=f"kdkit new recipe {name} FILE")
    echo(f"{path} is written; run it: kdkit run {shlex.quote(str(path))}")


def recipe_templates(plugins: Plugins) -> dict[str, Path]:
    """Return the recipe templates of all plugins by name. Warns if a template is registered twice, or is missing."""
    templates: dict[str, Path] = {}
    for plugin_name, call in plugins.implementations("register_templates"):

        def register(name: str, path: Path, plugin_name: str = plugin_name) -> None:
            if name in templates:
                raise PluginError(
                    f"plugin {plugin_name!r} registers a template {name!r}, which exists; choose another name"
                )
            if not Path(path).is_file():
                raise PluginError(f"plugin {plugin_name!r} registers the template {name!r} as {path}, not a file")
            templates[name] = Path(path)

        with plugins.errors_of(plugin_name, "register its templates"):
            call(register)
    return dict(sorted(templates.items()))


@new.command(short_help="Write a package that extends kdkit.")
@click.argument("name")
@click.argument("path", required=False, type=PATH)
def plugin(name: str, path: Path | None) -> None:
    """Write an installable package NAME with a loss, a schedule, a metric, a data set, a callback and tests.

        kdkit new plugin my_losses
        kdkit new plugin my_losses packages/my_losses

    PATH is the folder NAME by default.
    """
    _validate_package(name)
    folder = Path(name) if path is None else path
    if exists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise KdkitError(f"{folder} exists and is not empty; name another folder: kdkit new plugin {name} FOLDER")
    option = f"kdkit new plugin {name} FOLDER"
    require_output_folder(folder, option)
    files = [file for file in sorted(PLUGIN.rglob("*")) if file.is_file() and "__pycache__" not in file.parts]
    is_new = not exists(folder)
    try:
        for file in files:
            target = folder / str(file.relative_to(PLUGIN)).replace(_PLUGIN_NAME, name)
            text = file.read_text(encoding="utf-8").replace(_PLUGIN_NAME, name)
            # The name of a distribution has hyphens.
            write_output(target, text.replace(_PLUGIN_NAME.replace("_", "-"), name.replace("_", "-")), option=option)
    except KdkitError:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    echo(f"{folder} is written; install and test it: cd {folder} && pip install -e '.[test]' && pytest")


def _validate_package(name: str) -> None:
    """Raise KdkitError if a new package cannot have this name."""
    if not name.isidentifier() or not name.islower() or not name.isascii() or keyword.iskeyword(name):
        # It may be the name of the distribution, such as "my-loss".
        similar = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        is_valid = similar.isidentifier() and not keyword.iskeyword(similar)
        hint = f"; kdkit new plugin {similar}" if is_valid else ""
        raise KdkitError(f"the name of a plugin must have only lower-case letters, digits and _; got {name!r}{hint}")
    # In this order, because `find_spec` raises for a module that is loaded without a spec, such as __main__.
    is_taken = name in {*sys.stdlib_module_names, *sys.modules} or importlib.util.find_spec(name) is not None
    # `find_spec` also finds a folder of this name, which is a conflict only if it has files.
    if is_taken and not Path(name).is_dir():
        raise KdkitError(f"a package {name!r} already exists; choose another name")
