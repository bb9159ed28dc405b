"""Read JSON files that may be damaged or hostile: strictly, and with bounded memory."""

import json
import math
from pathlib import Path
from typing import Any

LARGEST_FILE = 2**27  # bytes of a file that is read as a whole, 128 MiB
_MOST_VALUES = 3_000_000  # in a text: an empty list takes 64 bytes of memory, but three in the file
_DEEPEST = 100  # nested lists and objects; Python 3.13 parses deeper than a function may recurse


def read_json(path: Path) -> Any:
    """Return the content of a file. Raises OSError if it cannot be read, and ValueError if it is not strict JSON.

    Strict JSON has no NaN, no infinity and no number that overflows, and no key twice in an object.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise OSError("it is not a file")
    if size > LARGEST_FILE:
        raise ValueError(f"it has {size} bytes, and may have at most {LARGEST_FILE}")
    with path.open("rb") as file:
        return parse_json(file.read(LARGEST_FILE + 1))


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
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # None
        raise ValueError(f"it has the key {twice[:40]!r} twice")
    return values
