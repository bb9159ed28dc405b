"""Read JSON files that may be damaged or hostile: strictly, and with bounded memory; and the values in them.

A value may have any type, even in a file with a valid checksum: a program that changes the file can compute it again.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdkit.utils.files import read_file

_LARGEST_FILE = 2**27  # bytes of a file that is read as a whole, 128 MiB
_MOST_VALUES = 3_000_000  # in a text: an empty list takes 64 bytes of memory, but three in the file
_DEEPEST = 100  # nested lists and objects; Python 3.13 parses deeper than a function may recurse


def read_json(path: Path) -> Any:
    """Return the content of a file. Raises OSError if it cannot be read, and ValueError if it is not strict JSON.

    Strict JSON has no NaN, no infinity and no number that overflows, and no key twice in an object.
    """
    return parse_json(read_bounded(path))


def read_bounded(path: Path) -> bytes:
    """Return the bytes of a file. Raises OSError if it cannot be read, and ValueError if it is too large."""
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise ValueError(f"it has {size} bytes, and may have at most {_LARGEST_FILE}")
    return read_file(path)


def parse_json(content: bytes) -> Any:
    """Return the content of a JSON text. Raises ValueError if it is not strict JSON."""
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > _MOST_VALUES:
        raise ValueError(f"it has more than {_MOST_VALUES} values")
    text = content.decode()  # UnicodeDecodeError is a ValueError
    del content
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count("[") + text.count("{") > _DEEPEST and _depth(value) > _DEEPEST:
        raise ValueError("it is nested too deeply")
    return value


def require_object(value: Any) -> dict[str, Any]:
    """Return a value that must be an object. Raises ValueError otherwise."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got a {type(value).__name__}")
    return value


def require_text(value: Any) -> str:
    """Return a value that must be a string. Raises ValueError otherwise."""
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got a {type(value).__name__}")
    return value


def require_number(value: Any) -> float:
    """Return a value that must be a number, as a float. Raises ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got a {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("a number is too large") from None


def number_or_nan(value: Any) -> float:
    """Return a number, or NaN for null, because JSON has no NaN. Raises ValueError for other values."""
    return math.nan if value is None else require_number(value)


def number_or(value: Any, default: float) -> float:
    """Return a value if it is a finite number, otherwise the default."""
    try:
        number = require_number(value)
    except ValueError:
        return default
    return number if math.isfinite(number) else default


def mapping(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return an object in a record, empty if there is none."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def items(record: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list in a record, empty if there is none."""
    value = record.get(key)
    return value if isinstance(value, list) else []


def rows(record: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the objects of a list in a record, empty if there are none."""
    return [row for row in items(record, key) if isinstance(row, dict)]


def whole_number(record: Mapping[str, Any], key: str) -> int | None:
    """Return a whole number in a record, None if there is none."""
    value = record.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _depth(value: Any) -> int:
    """Return how deeply lists and objects are nested."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [item for parent in level for item in (parent.values() if isinstance(parent, dict) else parent)]
    return depth


def _finite(text: str) -> float:
    value = float(text)  # also parses the words NaN and Infinity
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        ((key, _count),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"it has the key {key[:40]!r} twice")
    return values
