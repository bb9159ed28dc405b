"""Write files atomically, and values as JSON."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(path: Path, content: bytes | str) -> None:
    """Write a file atomically: to a temporary file in the same folder, which then replaces the target."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # a rename must not cross file systems
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave the new name with an empty file
        Path(name).replace(path)
    except BaseException:  # KeyboardInterrupt too must not leave the temporary file
        Path(name).unlink(missing_ok=True)
        raise


def to_json(value: Any, indent: int | None = None) -> str:
    """Return the value as JSON, with null for numbers that are not finite."""
    return json.dumps(_with_null(value), indent=indent, allow_nan=False)


def nulls_to_nan(value: Any) -> Any:
    """Return a value read from such JSON with NaN for null."""
    if isinstance(value, dict):
        return {key: nulls_to_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nulls_to_nan(item) for item in value]
    return math.nan if value is None else value


def _with_null(value: Any) -> Any:
    # JSON has no NaN or infinity. Python would write them as bare words, which other readers reject.
    if isinstance(value, Mapping):
        return {key: _with_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
