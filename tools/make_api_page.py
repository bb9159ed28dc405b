"""Write docs/api.md, the list of public names, and tests/golden/api.txt, their signatures, which a test compares.

    python tools/make_api_page.py

Run it after a change of the public API, and read the difference of api.txt: a name or an argument that disappears or
moves breaks programs of users, and needs a line under "Changed" in CHANGELOG.md.
"""

import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
SNAPSHOT = ROOT / "tests" / "golden" / "api.txt"
MODULES = ("kdkit", "kdkit.losses", "kdkit.losses.projectors", "kdkit.recipe.balancing", "kdkit.metrics",
           "kdkit.loggers", "kdkit.report", "kdkit.export", "kdkit.testing", "kdkit.errors", "kdkit.plugins.hooks",
           "kdkit.plugins.events", "kdkit_ecg")  # fmt: skip

_INTRODUCTION = """# Public names

Programs and plugins may rely on the names of this page. A name of another module, or one that begins with `_`, may
change in any version. Until version 1.0 a public name may change in a minor version, which CHANGELOG.md says; after it
in a major version only. The arguments and the whole text of a name are in the reference of the site, which
`python -m tools.website` builds, and in `help(kdkit.Net)`.
"""


def public_names(module: ModuleType) -> list[str]:
    """Return the public names of a module: those in `__all__`, or else the classes and functions that it defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    )


def signatures() -> Iterator[str]:
    """Yield a line for each public name, and for each public method and property of the classes among them."""
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in public_names(module):
            value = getattr(module, name)
            path = f"{module_name}.{name}"
            yield path + ("" if inspect.ismodule(value) else _arguments(value))
            if inspect.isclass(value):
                for member, definition in sorted(members_of(value).items()):
                    yield f"{path}.{member}{_arguments(definition)}"


def page() -> str:
    """Return the text of docs/api.md."""
    parts = [_INTRODUCTION]
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        values = {name: getattr(module, name) for name in public_names(module)}
        rows = [f"| `{name}` | {_summary(value)} |" for name, value in values.items() if not _is_loss(value)]
        others = "" if len(rows) == len(values) else "The losses of [Losses](losses.md), and\n\n"
        parts.append("\n".join([f"## {module_name}\n", f"{others}| name | purpose |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def members_of(kind: type) -> dict[str, Any]:
    """Return the public methods and properties of a class that kdkit defines, also in its base classes."""
    members: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("kdkit"):
            for name, value in vars(base).items():
                is_member = (
                    callable(value) or isinstance(value, classmethod | staticmethod) or hasattr(value, "__get__")
                )
                if not name.startswith("_") and is_member and not inspect.ismemberdescriptor(value):
                    members[name] = value
    return members


def _arguments(value: Any) -> str:
    """Return the arguments of a callable with their defaults, without types; "" for a property or an alias."""
    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    if is_alias(value) or not callable(function):
        return ""
    if getattr(function, "_is_protocol", False):  # has no arguments; Python 3.13 invents some
        return "(...)"
    # A class of torch has the arguments of the installed version.
    if inspect.isclass(value) and getattr(value.__init__, "__module__", "").startswith("torch."):
        return "(...)"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of C, or of a class without one
        return "(...)"
    texts = []
    for parameter in signature.parameters.values():
        default = parameter.default
        if default is not parameter.empty and callable(default):
            default = _Name(getattr(default, "__name__", type(default).__name__))
        texts.append(str(parameter.replace(annotation=parameter.empty, default=default)))
    # The markers of positional and keyword-only arguments are part of the signature.
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    first = next((index for index, kind in enumerate(kinds) if kind == inspect.Parameter.KEYWORD_ONLY), None)
    if first is not None and inspect.Parameter.VAR_POSITIONAL not in kinds:
        texts.insert(first, "*")
    return f"({', '.join(texts)})"


class _Name:
    """A default value that is shown by its name, since its repr has an address."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def is_alias(value: Any) -> bool:
    """Return whether a value is an alias of types or a constant, whose docstring is that of its class."""
    return isinstance(value, tuple | dict) or typing.get_origin(value) is not None


def _is_loss(value: Any) -> bool:
    """Return whether a value is a loss, which docs/losses.md lists with its formula."""
    return inspect.isclass(value) and "\nFormula: " in (inspect.getdoc(value) or "")


def _summary(value: Any) -> str:
    if is_alias(value):
        kind = "a constant" if isinstance(value, tuple | dict) else "an alias of types"
        return f"{kind}: `{shown_type(value)}`".replace("|", "\\|")
    lines = (inspect.getdoc(value) or "").splitlines()
    return lines[0].replace("|", "\\|") if lines else ""


def shown_type(annotation: Any) -> str:
    """Return an annotation, or a constant, without the modules of its classes."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"<class '([^']+)'>", r"\1", text)
    # numpy before 2.5 shows what its alias stands for.
    text = re.sub(r"numpy\.ndarray\[tuple\[(?:typing\.)?Any, \.{3}\], numpy\.dtype\[([\w.]+)\]\]", r"NDArray[\1]", text)
    text = re.sub(r"^\*([\w.]+)$", r"Unpack[\1]", text)
    text = re.sub(r"(?<![\w.])[+~-](?=[A-Z])", "", text)  # the variance of a type variable
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z_])", "", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SNAPSHOT.write_text("\n".join(signatures()) + "\n", encoding="utf-8")
