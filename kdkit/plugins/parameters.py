"""The parameters of recipe(), which become options of the command line."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from kdkit.errors import RecipeError
from kdkit.utils.signatures import parameters_by_name

SIMPLE = (int, float, str, bool, Path)  # the types that an option may have, in addition to Literal
_UNCONVERTED: Mapping[Any, Any] = {bool: bool, Path: (str, Path)}  # click does not convert other defaults to these


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of recipe(), described for an option.

    help: its description in the docstring of recipe(). type: of one value, without `| None`. optional: whether the
    parameter may be None. multiple: whether it is a tuple or a list of such values. default: None if it is required.
    """

    name: str
    help: str
    type: Any
    optional: bool
    multiple: bool
    default: Any
    required: bool

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a Literal; empty for other types."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()


def parameters_of(
    path: Path, function: Callable[..., Any], hints: Mapping[str, Any], docstring: str
) -> tuple[Parameter, ...]:
    """Return the parameters of the recipe() in a file. Raises RecipeError if one cannot be an option.

    hints: their types. docstring: of recipe(); paragraphs that begin with "name: " describe the parameters.
    """
    pattern = r"^(\w+): (.+(?:\n(?!\w+: )\S.*)*)"
    paragraphs = re.findall(pattern, inspect.cleandoc(docstring), flags=re.MULTILINE)
    descriptions = {name: " ".join(text.split()) for name, text in paragraphs}
    return tuple(
        _parameter(path, parameter, hints, descriptions.get(name, ""))
        for name, parameter in parameters_by_name(function).items()
    )


def _parameter(path: Path, parameter: inspect.Parameter, hints: Mapping[str, Any], description: str) -> Parameter:
    """Return one parameter of recipe(). Raises RecipeError if its kind or its type cannot be an option."""
    name = parameter.name
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
        raise RecipeError(f"{path}: recipe() takes named parameters with types, which are its options; got {parameter}")
    if name not in hints:
        raise RecipeError(f"{path}: parameter {name!r} of recipe() has no type; write {name}: int = ..., for example")
    kind, optional, multiple = _value_type(hints[name])
    literal = get_origin(kind) is Literal and len({type(value) for value in get_args(kind)}) == 1
    if kind not in SIMPLE and not literal:
        raise RecipeError(
            f"{path}: parameter {name!r} of recipe() is a {hints[name]}; an option must be int, float, str, bool, "
            "Path, a Literal of one kind, one of these or None, or a tuple[...] of one"
        )
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    values = default if multiple and isinstance(default, Iterable) else (default,)
    if default is not None and not all(isinstance(value, _UNCONVERTED.get(kind, object)) for value in values):
        # Python 3.13 defines Path in a private module.
        annotation = inspect.formatannotation(hints[name]).replace("pathlib._local.", "pathlib.")
        raise RecipeError(
            f"{path}: parameter {name!r} of recipe() is a {annotation}, but its default is {default!r}; change one of "
            "them"
        )
    return Parameter(
        name=name,
        help=description,
        type=kind,
        optional=optional,
        multiple=multiple,
        default=default,
        required=required,
    )


def _value_type(hint: Any) -> tuple[Any, bool, bool]:
    """Return the type of one value, without `| None`, tuple and list, and whether it may be None or repeated."""
    optional = False
    if get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        if len(members) != 1:
            return hint, False, False
        optional, hint = True, members[0]
    if get_origin(hint) in (tuple, list):
        members = [member for member in get_args(hint) if member is not Ellipsis]
        return (members[0], optional, True) if len(set(members)) == 1 else (hint, optional, False)
    return hint, optional, False
