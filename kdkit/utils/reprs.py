"""Short texts for reprs, tables and messages: shapes instead of numbers, counts, sizes, and the first of many names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from kdkit.errors import shortened

_MOST_NAMES = 8  # of a list of names


def describe_array(value: Any) -> str:
    """Return the dtype, shape and device of a tensor or an array, or of those in a container; otherwise the repr."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        device = str(getattr(value, "device", "cpu"))  # numpy has none before 2.0
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype} {tuple(value.shape)}" + ("" if device == "cpu" else f" on {device}")
    if is_dataclass(value) and not isinstance(value, type) and not isinstance(value, Mapping):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe_array(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(describe_array, value)) + ")"
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text  # an address means nothing to a reader


def without_addresses(text: str) -> str:
    """Return a repr, such as that of a function, without memory addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def with_names(text: str) -> str:
    """Return a repr with the names of functions and of classes instead of their reprs with memory addresses."""
    text = re.sub(r"<function (?:\S*\.)?(\S+) at 0x[0-9a-fA-F]+>", r"\1", text)
    return without_addresses(re.sub(r"<(?:\S*\.)?(\w+) object at 0x[0-9a-fA-F]+>", r"\1", text))


def describe_names(names: Iterable[str]) -> str:
    """Return names separated by commas; for a long list, the first ones and the last one."""
    names = list(names)
    if len(names) > _MOST_NAMES:
        names = [*names[: _MOST_NAMES - 1], "...", names[-1]]
    return ", ".join(names)


def distinct_notes(notes: Iterable[str]) -> list[str]:
    """Return the parts of notes, which are joined by "; ", each once: results of several networks share them."""
    return [*dict.fromkeys(part for note in notes for part in note.split("; ") if part)]


def first_three(names: Sequence[str]) -> str:
    """Return the first three names, and the number of other names."""
    shown = ", ".join(shortened(name, most=200) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def describe_numbers(numbers: Sequence[int]) -> str:
    """Return the first five numbers separated by commas, and "..." for the others."""
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def describe_count(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 class", "1,000 classes"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def differing(first: Any, second: Any) -> tuple[Any, Any]:
    """Return the differing parts of two JSON values: keys, items, and for texts the parts between commas."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
        pairs = {key: differing(first.get(key), second.get(key)) for key in keys}
        return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        items = [differing(*pair) for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
        items = [pair for index, pair in enumerate(items) if pair not in items[:index]]
        return [pair[0] for pair in items], [pair[1] for pair in items]
    if isinstance(first, str) and isinstance(second, str) and first != second:
        parts = first.split(", "), second.split(", ")
        for end in (0, -1):
            while all(parts) and parts[0][end] == parts[1][end]:
                parts[0].pop(end), parts[1].pop(end)
        return _balanced(", ".join(parts[0])), _balanced(", ".join(parts[1]))
    return first, second


def _balanced(text: str) -> str:
    """Return a part of a call with its missing closing brackets, and without those at its end that nothing opens."""
    missing = text.count("(") - text.count(")")
    while missing < 0 and text.endswith(")"):
        text, missing = text[:-1], missing + 1
    return text + ")" * missing


def describe_options(value: Any, *names: str) -> list[str]:
    """Return the attributes of a dataclass that differ from their defaults, as "name=value"."""
    defaults = {field.name: field.default for field in fields(value)}
    options = {name: getattr(value, name) for name in names}
    return [f"{name}={with_names(repr(option))}" for name, option in options.items() if option != defaults[name]]


def format_count(count: float) -> str:
    """Return a number with three significant digits, such as "26 M" for 26,000,000."""
    units = ["", " k", " M", " G", " T"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g}{units[0]}"


def format_bytes(count: float, *, base: int = 1000) -> str:
    """Return a number of bytes as text with three significant digits, such as "1.5 GB".

    base: the factor from unit to unit: 1000 for files, 1024 for memory, as torch and nvidia-smi count it.
    """
    units = ["B", "kB", "MB", "GB"]
    while count >= base and len(units) > 1:
        count /= base
        units.pop(0)
    digits = f"{count:.0f}" if count >= 99.95 else f"{count:.3g}"  # from 100 on, .3g could switch to "1e+03"
    return f"{digits} {units[0]}"


def weight_text(first: str, last: str, factors: str) -> str:
    """Return the weight of a term in a stage.

    first, last: the weight at the start and at the end. If both are equal, but a factor is a function, such as one that
    alternates, the factors are returned. factors: as written in a recipe, such as "0.5 * alternate".
    """
    if first != last:
        return f"{first} to {last}"
    return first if re.fullmatch(r"[\d.e+* -]*", factors) else factors
