"""Read the parameters of a recipe file from its text. Importing the file may take seconds."""

import ast
import inspect
import types
import typing
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdkit.plugins.parameters import Parameter, parameters_of

# Names that annotations and defaults may use. If there are others, the file must be imported.
_BUILTINS = {kind.__name__: kind for kind in (bool, float, int, list, str, tuple)}
_IMPORTS: dict[tuple[str | None, str], Any] = {
    ("pathlib", "Path"): Path,
    ("typing", "Literal"): typing.Literal,
    ("typing", "Optional"): typing.Optional,
    ("typing", "Union"): typing.Union,
}
_VALUES = (ast.Constant, ast.Name, ast.Subscript, ast.Tuple, ast.List, ast.UnaryOp, ast.USub,
           ast.BinOp, ast.BitOr, ast.Load)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RecipeOutline:
    """The contents of a recipe file's help: its docstring, and the parameters of recipe()."""

    path: Path
    description: str
    parameters: tuple[Parameter, ...]


def read_outline(path: Path) -> RecipeOutline | None:
    """Return the outline of a recipe file, or None if the file must be imported to get it or to explain an error.

    No code of the file runs, except for annotations and defaults of constants and of the types of options.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested expressions
        return None
    bindings = _bindings(tree)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "recipe"]
    # A decorator or a second binding may change the parameters, and an import of "*" binds unknown names.
    if len(functions) != 1 or functions[0].decorator_list or bindings["recipe"] > 1 or bindings["*"]:
        return None
    names: dict[str, Any] = {"__builtins__": {}, **_BUILTINS}
    for node in tree.body:
        _bind(node, names)
    # The final value of a name is unknown if it is bound again, such as by `WIDTH += 1`.
    ambiguous = [name for name in names if bindings[name] > (name not in _BUILTINS)]
    for name in ambiguous:
        del names[name]
    docstring = ast.get_docstring(functions[0], clean=False)
    function = ast.FunctionDef(
        name="recipe", args=functions[0].args, body=[ast.Expr(ast.Constant(docstring))], decorator_list=[]
    )
    if not all(_is_value(node) for node in _expressions(functions[0].args)):
        return None
    module = ast.fix_missing_locations(ast.Module(body=[function], type_ignores=[]))
    try:
        exec(compile(module, str(path), "exec"), names)
        outlined: types.FunctionType = names["recipe"]
        hints = typing.get_type_hints(outlined, names)
        parameters = parameters_of(path, outlined, hints, docstring or "")
    except Exception:  # an imported name, or a wrong parameter or annotation, which the import explains
        return None
    return RecipeOutline(path, inspect.cleandoc(ast.get_docstring(tree) or ""), parameters)


def _bindings(tree: ast.Module) -> Counter[str]:
    """Return how often a file binds each name anywhere, including local variables of functions."""
    names: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names[node.id] += 1
        elif isinstance(node, ast.alias):
            names[(node.asname or node.name).partition(".")[0]] += 1
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] += 1
    return names


def _bind(node: ast.stmt, names: dict[str, Any]) -> None:
    """Add the names that a statement binds, if it imports a type of options, or assigns a constant or such a type."""
    if isinstance(node, ast.ImportFrom):
        for alias in node.names:
            if (node.module, alias.name) in _IMPORTS:
                names[alias.asname or alias.name] = _IMPORTS[node.module, alias.name]
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _is_value(node.value):
        # This may fail, for example for a subscript of a value of the file; perhaps no option needs the name.
        with suppress(Exception):
            names[node.targets[0].id] = eval(compile(ast.Expression(node.value), "", "eval"), names)


def _expressions(arguments: ast.arguments) -> list[ast.expr]:
    """Return the annotations and defaults of a function."""
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    defaults = [*arguments.defaults, *arguments.kw_defaults]
    return [node for node in (*(argument.annotation for argument in every), *defaults) if node is not None]


def _is_value(node: ast.expr) -> bool:
    """Whether an expression consists of constants, names, subscripts and unions, so that it runs no other code."""
    return all(isinstance(part, _VALUES) for part in ast.walk(node))
