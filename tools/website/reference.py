"""The reference: a page for each public package, from its docstrings and signatures.

A docstring is a summary, paragraphs, parameters (`name: text`, or `one, two: text`) and, for a loss, the fields
Formula, Shapes and Source. Parameters and fields become lists of definitions, and `Net` in backticks a link.
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from kdkit.plugins.recipe_file import load_file
from tools.website.staging import ROOT

api = load_file(ROOT / "tools" / "make_api_page.py")

FIELDS = ("Formula", "Shapes", "Source")
_LINE = 88  # signatures that are longer get a line for each argument


def pages() -> dict[str, str]:
    """Return the pages of the reference by path, and the list of public names with links to them."""
    modules = {name: importlib.import_module(name) for name in api.MODULES}
    places = {}
    for name, module in modules.items():
        # A name that two packages export, such as Metric, is linked to where it is first.
        for public in api.public_names(module):
            places.setdefault(public, f"{name}.md#{name}.{public}")
    written = {f"reference/{name}.md": _page(name, module, places) for name, module in modules.items()}
    return {**written, "api.md": _linked(api.PAGE.read_text("utf-8"))}


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
    parts = [f"# {name}\n\n{_text(inspect.getdoc(module) or '', {}, places)}"]
    for public in api.public_names(module):
        value = getattr(module, public)
        if inspect.ismodule(value):
            place = f"See [`{value.__name__}`]({value.__name__}.md).\n"
            parts.append(f"## {public} {{ #{name}.{public} }}\n\n{place}")
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
    parameters, signature = _signature(name, function)
    if isinstance(value, classmethod):
        signature = f"@classmethod\n{signature}"
    own = "__doc__" in vars(value) if inspect.isclass(value) else True
    docstring = inspect.getdoc(function) if callable(function) or isinstance(value, property) else None
    text = docstring if docstring and own and not _is_alias(value) else ""
    # A dataclass without a docstring has one that repeats its signature.
    if inspect.isclass(value) and text.startswith(f"{value.__name__}("):
        text = ""
    return f"```python\n{signature}\n```\n\n{_text(text, parameters, places)}"


def _is_alias(value: Any) -> bool:
    """Return whether a value is an alias of types or a constant, whose docstring is that of its type."""
    return not (inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, property | classmethod))


def _signature(name: str, value: Any) -> tuple[dict[str, str], str]:
    """Return the types of the parameters of a callable by name, and its signature as code."""
    if isinstance(value, property):
        return {}, f"{name}: {_type(inspect.signature(value.fget).return_annotation)}"
    if _is_alias(value):
        return {}, f"{name} = {_type(value)}"
    prefix = "class " if inspect.isclass(value) else "def "
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # of C, or a class without arguments
        return {}, f"{prefix}{name}(...)"
    if str(signature) == "(*args, **kwargs)":  # a protocol
        return {}, f"{prefix}{name}"
    shown = [(parameter, _parameter(parameter, value)) for parameter in signature.parameters.values()]
    texts: list[str] = []
    for parameter, text in shown:
        if parameter.name == "self":
            continue
        starred = any(text.startswith("*") for text in texts)
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            texts.append("*")
        texts.append(text)
    returned = (
        ""
        if inspect.isclass(value) or signature.return_annotation is signature.empty
        else (f" -> {_type(signature.return_annotation)}")
    )
    line = f"{prefix}{name}({', '.join(texts)}){returned}"
    if len(line) > _LINE:
        line = f"{prefix}{name}(\n" + "".join(f"    {text},\n" for text in texts) + f"){returned}"
    members = {parameter.name: text for parameter, text in shown}
    return members, line


def _parameter(parameter: inspect.Parameter, value: Any) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    typed = "" if parameter.annotation is parameter.empty else f": {_type(parameter.annotation)}"
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


def _type(annotation: Any) -> str:
    """Return an annotation without the modules of its classes."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"<class '([^']+)'>", r"\1", text)
    text = re.sub(r"^\*(?=[\w.]+$)", "Unpack ", text)
    text = re.sub(r"(?<![\w.])[+~-](?=[A-Z])", "", text)  # the variance of a type variable
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z_])", "", text)


def _text(docstring: str, parameters: dict[str, str], places: dict[str, str]) -> str:
    """Return a docstring as Markdown: paragraphs, then definitions of its parameters and fields."""
    names = [*parameters, *FIELDS]
    parts = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        prose, definitions = _definitions(paragraph, names)
        if prose:
            parts.append(_escaped(prose, places))
        if definitions:
            kind = "kd-fields" if any(name in FIELDS for name, _ in definitions) else "kd-parameters"
            lines = [_definition(name, text, places) for name, text in definitions]
            parts.append("\n\n".join([f'<div class="{kind}" markdown>', *lines, "</div>"]))
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


def _definitions(paragraph: str, names: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Split a paragraph into its prose, and the names with their texts that follow it."""
    if re.match(r"[-*] |\d+\. | {4}", paragraph):  # a list or code
        return paragraph, []
    known = "|".join(map(re.escape, names))
    # At the start of a line any name, such as an attribute's; after a sentence a known one, since prose has colons too.
    start = re.compile(
        rf"(?:^([a-z_]\w*(?:, [a-z_]\w*)*|{known}):\s|(?<=\.\s)((?:{known})(?:,\s(?:{known}))*):\s)", re.MULTILINE
    )
    matches = list(start.finditer(paragraph))
    if not matches:
        return paragraph, []
    ends = [*(match.start() for match in matches[1:]), len(paragraph)]
    definitions = [
        (re.sub(r"\s+", " ", match[1] or match[2]), re.sub(r"\s+", " ", paragraph[match.end() : end]).strip())
        for match, end in zip(matches, ends, strict=True)
    ]
    return paragraph[: matches[0].start()].strip(), definitions


def _escaped(text: str, places: dict[str, str]) -> str:
    """Return text with its Markdown escaped, except for code, lists and links to public names."""
    return "".join(_escaped_parts(text, places))


def _escaped_parts(text: str, places: dict[str, str]) -> Iterator[str]:
    for index, part in enumerate(re.split(r"(`[^`\n]+`)", text)):
        if index % 2 == 0:
            yield re.sub(r"([\\*_\[\]])", r"\\\1", part).replace("<", "&lt;")
        elif (name := part.strip("`").removeprefix("kdkit.")) in places:
            yield f"[{part}]({places[name]})"
        else:
            yield part
