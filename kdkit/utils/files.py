"""Write files atomically, and values as JSON."""

import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

Content = bytes | bytearray | memoryview

# Only the call that sets the umask returns it. Here, as the module is imported, no other thread creates files.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
_MODE = 0o666 & ~_UMASK
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")  # as `write` names them


def write(path: Path, *content: Content | str) -> None:
    """Write a file atomically: to a temporary file in the same folder, which then replaces the target.

    After a power cut the file is the old one or the new one. content: parts that are written one after the other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename must not cross file systems.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in content:
                file.write(part.encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave the new name with an empty file
        temporary.chmod(_MODE)  # mkstemp's 0600 would hide the file from the user's group
        temporary.replace(path)
    except BaseException:  # KeyboardInterrupt too must not leave the temporary file
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append(path: Path, content: Content) -> None:
    """Append to a file. After a power cut a part of the content may be missing."""
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, so that a rename outlives a power cut."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not support it, and the rename is done
            os.fsync(handle)
    finally:
        os.close(handle)


def delete_temporary_files(folder: Path) -> None:
    """Delete the temporary files that killed processes left in a folder and in the folders in it.

    The caller holds the lock of the folder, so that no other process is writing there.
    """
    for file in folder.rglob(".*.tmp"):
        if is_temporary(file):
            file.unlink(missing_ok=True)


def is_temporary(file: Path, name: str | None = None) -> bool:
    """Whether a file is a temporary one of `write`; name: of the file that was written, or None for any."""
    match = _TEMPORARY.fullmatch(file.name)
    return match is not None and name in (None, match[1]) and file.is_file() and not file.is_symlink()


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
