"""What a recipe function uses: its arguments, its constants and its code, so that runs and studies notice changes."""

import dis
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any

from kdkit.utils.signatures import parameters_by_name


def function_of(recipe: Callable[..., object]) -> Callable[..., object]:
    """Return the function of a `functools.partial`, or another callable itself."""
    return recipe.func if isinstance(recipe, partial) else recipe


def arguments_of(recipe: Callable[..., object]) -> dict[str, Any]:
    """Return the arguments of a `functools.partial`, and the constants in a closure or an object, by name."""
    if isinstance(recipe, partial):
        arguments = dict(zip(parameters_by_name(recipe.func), recipe.args, strict=False))
        return {**arguments_of(recipe.func), **arguments, **recipe.keywords}
    if isinstance(recipe, FunctionType):
        values = _closure_of(recipe)
    else:
        owner = getattr(recipe, "__self__", recipe)  # of a method
        values = {} if isinstance(owner, type) else getattr(owner, "__dict__", {})
    return {name: value for name, value in values.items() if _is_constant(value)}


def source_file(recipe: Callable[..., object]) -> Path | None:
    """Return the file that defines a recipe function; None if there is none, such as for a callable object."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function_of(recipe)))
    except TypeError:  # a callable that is not a function
        return None
    return Path(file) if file is not None and Path(file).is_file() else None


def code_of(recipe: Callable[..., object]) -> bytes | None:
    """Return the source of a recipe function, and of the functions, classes and constants that it uses of its module.

    None if its source is unknown, or for a callable object. Other values, such as tensors, are not included.
    """
    function = inspect.unwrap(function_of(recipe))
    if not isinstance(function, FunctionType):
        return None
    parts: dict[str, str] = {}
    _add(function.__name__, function, function.__module__, parts)
    return "\n".join(parts.values()).encode() if parts[function.__name__] else None


def _add(name: str, value: object, module: str, parts: dict[str, str]) -> None:
    """Add the code of a value by its name, and that of everything it uses."""
    if name in parts:
        return
    if not isinstance(value, FunctionType):
        value = getattr(value, "__wrapped__", value)  # of functools.cache
    if isinstance(value, FunctionType) and value.__module__ == module:
        # Code run by `exec` is in the file "<string>", as that of `python -c` is, whose source Python 3.13 returns.
        source = ""
        with suppress(OSError):  # of a method of a dataclass, or in an interactive interpreter
            # The source of a lambda is its whole statement, such as a call of kdkit.run with other options.
            if value.__name__ == "<lambda>":
                source = _compiled(value.__code__)
            elif value.__code__.co_filename != "<string>":
                source = inspect.getsource(value)
        parts[name] = source
        for used, member in sorted(_used_by(value).items()):
            _add(used, member, module, parts)
    elif isinstance(value, type) and value.__module__ == module:
        # Not the source of the class: Python 3.12 and older find it only in a file.
        parts[name] = f"class {name}({', '.join(base.__name__ for base in value.__bases__)}): ..."
        for base in value.__bases__:
            _add(base.__name__, base, module, parts)
        for attribute, member in vars(value).items():
            function = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
            if isinstance(function, FunctionType) or not attribute.startswith("__"):
                _add(f"{name}.{attribute}", function, module, parts)
    elif _is_constant(value):
        parts[name] = f"{name} = {value!r}"


def _used_by(function: FunctionType) -> dict[str, object]:
    """Return the values that a function uses by name: those of its module, of functions around it, and its defaults."""
    names = set(_names(function.__code__))
    used = {name: value for name, value in function.__globals__.items() if name in names} | _closure_of(function)
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    for index, value in enumerate(defaults):
        used[f"{function.__qualname__} default {index}"] = value
    return used


def _closure_of(function: FunctionType) -> dict[str, object]:
    """Return the values of the functions around a function that it uses, by name."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    # The cell of super(), and one without a value yet, are left out.
    return {name: cell.cell_contents for name, cell in cells if name != "__class__" and cell != CellType()}


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that code uses of its module, also in functions inside it."""
    # Not `co_names`, which has attributes too: an attribute `loss` is not the variable `loss` of another cell.
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _compiled(code: CodeType) -> str:
    """Return compiled code as text, without its position."""
    constants = [_compiled(value) if isinstance(value, CodeType) else value for value in code.co_consts]
    return f"# lambda {code.co_names} {constants} {code.co_code.hex()}"


def _is_constant(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_constant, value))
    if isinstance(value, dict):
        return all(map(_is_constant, (*value, *value.values())))
    return isinstance(value, bool | int | float | complex | str | bytes | Path | None)
