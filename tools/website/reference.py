"""The reference: a page for each public package, from its docstrings and signatures.

A docstring is a summary, paragraphs, parameters (`name: text`, or `one, two: text`) and, for a loss, the fields
Formula, Shapes and Source. Parameters and fields become lists of definitions, and `Net` in backticks a link.
"""

import dataclasses
import importlib
import inspect
import re
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

from kdkit.plugins.recipe_file import load_file
from tools.website.places import ROOT

api = load_file(ROOT / "tools" / "make_api_page.py")

# The fields at the end of the docstring of a loss.
FIELDS = ("Formula", "Shapes", "Source")
_DEFINITION = re.compile(rf"(?:^|(?<=\.\s))((?:[a-z_]\w*|{'|'.join(FIELDS)})(?:,\s[a-z_]\w*)*):\s", re.MULTILINE)
_LINE = 88  # signatures that are longer get a line for each argument


def pages() -> dict[str, str]:
    """Return the pages of the reference by path, and the list of public names with links to them."""
    modules, entries = _modules(), places_of_names()
    written = {f"reference/{name}.md": _page(name, module, entries) for name, module in modules.items()}
    return {**written, "api.md": _linked(api.PAGE.read_text("utf-8"))}


def places_of_names() -> dict[str, str]:
    """Return the entry of each public name, as a link from a page of the reference."""
    entries: dict[str, str] = {}
    for name, module in _modules().items():
        # A name that two packages export, such as Metric, is linked to where it is first.
        for public in api.public_names(module):
            entries.setdefault(public, f"{name}.md#{name}.{public}")
    return entries


def link_names(page: str, path: Path) -> str:
    """Return a page of the docs with links to the reference from public classes in the first column of tables."""
    entries = places_of_names()
    start = "../" * (len(path.parts) - 1) + "reference/"

    def linked(cell: re.Match[str]) -> str:
        return re.sub(
            r"`([A-Z]\w+)`",
            lambda name: f"[{name[0]}]({start}{entries[name[1]]})" if name[1] in entries else name[0],
            cell[0],
        )

    return re.sub(r"^\| (?:(?:<br>)?`\w+`(?:, )?)+ \|", linked, page, flags=re.MULTILINE)


def _modules() -> dict[str, ModuleType]:
    return {name: importlib.import_module(name) for name in api.MODULES}


def _linked(page: str) -> str:
    """Return docs/api.md with a link from each name to its entry."""
    module = ""
    lines = []
    for line in page.splitlines():
        if line.startswith("## "):
            module = line.removeprefix("## ")
        if name := re.match(r"\| (`(\w+)`) \|", line):
            line = line.replace(name[1], f"[{name[1]}](reference/{module}.md#{module}.{name[2]})", 1)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _page(name: str, module: ModuleType, places: dict[str, str]) -> str:
    parts = [f"# {name}\n\n{_text(inspect.getdoc(module) or '', set(), places)}"]
    for public in api.public_names(module):
        value = getattr(module, public)
        if inspect.ismodule(value):
            link = f"See [`{value.__name__}`]({value.__name__}.md).\n"
            parts.append(f"## {public} {{ #{name}.{public} }}\n\n{link}")
        else:
            parts.append(f"## {public} {{ #{name}.{public} }}\n\n{_entry(public, value, places)}")
            members = api.members_of(value) if inspect.isclass(value) else {}
            parts += [
                f"#### {public}.{member} {{ #{name}.{public}.{member} }}\n\n{_entry(member, definition, places)}"
                for member, definition in members.items()
            ]
    return "\n".join(parts)


def _entry(name: str, value: Any, places: dict[str, str]) -> str:
    """Return the signature and the text of a name."""
    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    signature = _signature(name, function)
    if isinstance(value, classmethod):
        signature = f"@classmethod\n{signature}"
    text = "" if api.is_alias(value) else inspect.getdoc(function) or ""
    if not (inspect.isclass(value) or inspect.isroutine(function) or isinstance(value, property)):
        text = text.partition("\n")[0]  # an object, such as a decorator: the rest is about its class
    return f"```python\n{signature}\n```\n\n{_text(text, _names(function), places)}"


def _names(value: Any) -> set[str]:
    """Return the names that a docstring may define: those of parameters, of options by keyword, and of attributes."""
    names = {*FIELDS}
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    for parameter in parameters:
        (options,) = typing.get_args(parameter.annotation)[:1] or (None,)  # of Unpack[a TypedDict]
        names |= {parameter.name, *getattr(options, "__annotations__", ())}
    if inspect.isclass(value):
        for base in value.__mro__[:-1]:
            names |= {*vars(base), *vars(base).get("__annotations__", ())}
            names |= {*getattr(getattr(base.__init__, "__code__", None), "co_names", ())}
    return names


def _signature(name: str, value: Any) -> str:
    """Return the signature of a callable, the type of a property, or the value of an alias, as code."""
    if isinstance(value, property):
        return f"{name}: {api.shown_type(inspect.signature(value.fget).return_annotation)}"
    if api.is_alias(value):
        return f"{name} = {api.shown_type(value)}"
    prefix = "class " if inspect.isclass(value) else "def "
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # of C, or a class without arguments
        return f"{prefix}{name}(...)"
    if str(signature) == "(*args, **kwargs)":  # a protocol
        return f"{prefix}{name}"
    texts: list[str] = []
    for parameter in signature.parameters.values():
        starred = any(text.startswith("*") for text in texts)
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            texts.append("*")
        if parameter.name != "self":
            texts.append(_parameter(parameter, value))
    has_type = not inspect.isclass(value) and signature.return_annotation is not signature.empty
    returned = f" -> {api.shown_type(signature.return_annotation)}" if has_type else ""
    line = f"{prefix}{name}({', '.join(texts)}){returned}"
    if len(line) <= _LINE:
        return line
    return f"{prefix}{name}(\n" + "".join(f"    {text},\n" for text in texts) + f"){returned}"


def _parameter(parameter: inspect.Parameter, value: Any) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    typed = "" if parameter.annotation is parameter.empty else f": {api.shown_type(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return f"{stars}{parameter.name}{typed}"
    default = _default(parameter, value)
    return f"{parameter.name}{typed} = {default}" if typed else f"{parameter.name}={default}"


def _default(parameter: inspect.Parameter, value: Any) -> str:
    if dataclasses.is_dataclass(value):
        field = value.__dataclass_fields__.get(parameter.name)
        if field is not None and field.default_factory is not dataclasses.MISSING:
            name = getattr(field.default_factory, "__name__", "...")
            return "..." if name == "<lambda>" else f"{name}()"
    default = parameter.default
    if callable(default):
        return getattr(default, "__name__", type(default).__name__)
    return re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", repr(default))


def _text(docstring: str, names: set[str], places: dict[str, str]) -> str:
    """Return a docstring as Markdown: paragraphs, and definitions of its parameters and fields."""
    parts = []
    for paragraph in re.split(r"\n\s*\n(?=\S)|\n\n(?=    )", docstring):
        if paragraph.startswith("    "):
            parts.append(f"```python\n{inspect.cleandoc(paragraph)}\n```")
            continue
        prose, definitions = _definitions(paragraph, names)
        if prose:
            parts.append(_escaped(prose, places))
        if definitions:
            kind = "kd-fields" if definitions[-1][0] in FIELDS else "kd-parameters"
            name, text = definitions.pop()
            # A last sentence about errors belongs to all of the parameters.
            text, *errors = re.split(r"(?<=[.)])\s(?=Raises [A-Z])", text, maxsplit=1)
            lines = [_definition(*definition, places) for definition in [*definitions, (name, text)]]
            parts.append("\n\n".join([f'<div class="{kind}" markdown>', *lines, "</div>"]))
            parts += [_escaped(error, places) for error in errors]
    return "\n\n".join(parts) + "\n"


def _definition(name: str, text: str, places: dict[str, str]) -> str:
    shown = name if name in FIELDS else ", ".join(f"`{part}`" for part in name.split(", "))
    if name == "Formula":
        formula, comma, symbols = text.partition(", with ")
        body = f"`{formula}`" + (f" with {_escaped(symbols, places)}" if comma else "")
    else:
        body = _escaped(text, places)
    if name == "Source":
        body = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", body)
    return f"{shown}\n:   {body}"


def _definitions(paragraph: str, names: set[str]) -> tuple[str, list[tuple[str, str]]]:
    """Split a paragraph into its prose, and those of the names, with their texts, that follow it."""
    if re.match(r"[-*] |\d+\. ", paragraph):  # a list
        return paragraph, []
    matches = [
        match
        for match in _DEFINITION.finditer(paragraph)  # of any name, since there are colons in prose too
        if {*re.split(r",\s", match[1])} <= names
    ]
    if not matches:
        return paragraph, []
    ends = [*(match.start() for match in matches[1:]), len(paragraph)]
    definitions = [
        (re.sub(r"\s+", " ", match[1]), re.sub(r"\s+", " ", paragraph[match.end() : end]).strip())
        for match, end in zip(matches, ends, strict=True)
    ]
    return paragraph[: matches[0].start()].strip(), definitions


def _escaped(text: str, places: dict[str, str]) -> str:
    """Return text with its Markdown escaped, except for code and lists, and with links to public names.

    Names of two words, such as RunOptions, are linked in prose too; Net and Data are also words.
    """
    parts = []
    for part in re.split(r"(`[^`\n]+`|(?<![\w.])[A-Z]\w*[a-z][A-Z]\w*)", text):
        is_code = part.startswith("`")
        shown = part if is_code else re.sub(r"([\\*_\[\]])", r"\\\1", part).replace("<", "&lt;")
        name = part.strip("`").removeprefix("kdkit.")
        is_linked = name in places and (is_code or re.search("[a-z][A-Z]", name))
        parts.append(f"[{shown}]({places[name]})" if is_linked else shown)
    return "".join(parts)
