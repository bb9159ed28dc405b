"""Read files, write them atomically, and values as JSON; test before any work whether a path can be written."""

import json
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdkit.errors import KdkitError, first_line

Content = bytes | bytearray | memoryview

# The umask can be read only by setting it. This is safe during the import, when no other thread creates files.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
_MODE = 0o666 & ~_UMASK
_PAUSES = (0.01, 0.03, 0.1, 0.3, 0.6)  # seconds between attempts to replace or delete a file
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")  # as `write` names them


def write(path: Path, *content: Content | str, mode: int = _MODE) -> None:
    """Write a file atomically: to a temporary file in the same folder, which then replaces the target.

    After a power cut, the file is either the old one or the new one. content: parts that are written one after another.
    mode: the permissions of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename must not cross file systems.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in content:
                file.write(part.encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave the new name with an empty file
        temporary.chmod(mode)  # mkstemp's 0600 would hide the file from the user's group
        _while_used(lambda: temporary.replace(path))
    except BaseException:  # KeyboardInterrupt too must not leave the temporary file
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def require_output(path: Path, option: str = "--out FILE") -> None:
    """Raise KdkitError if `write_output` would fail. Call it before the work whose result is written there.

    option: the option of the command that chooses another path.
    """
    with output_errors(path, option):
        if exists(path) and not path.is_file():
            raise OSError("it is a folder" if path.is_dir() else "it is not a regular file")  # such as /dev/null
        require_writable(path.with_name(f".{path.name}.{'x' * 8}.tmp"))  # the longest name that `write` needs


def require_output_folder(path: Path, option: str = "--out FOLDER") -> None:
    """Raise KdkitError if a folder cannot be created, or no file can be written in it; see `require_output`."""
    with output_errors(path, option):
        if os.path.lexists(path) and not path.is_dir():
            raise NotADirectoryError(f"{path} is not a folder")
        require_writable(path)


def write_output(path: Path, *content: Content | str, option: str = "--out FILE") -> None:
    """Write a file that the user has named; see `write`. Raises KdkitError if it cannot be written."""
    with output_errors(path, option):
        write(path, *content)


@contextmanager
def output_errors(path: Path, option: str) -> Iterator[None]:
    """Replace an OSError by a KdkitError that names the path and the option that chooses another one."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError if the path has a null character
        reason = getattr(error, "strerror", None) or first_line(error)
        raise KdkitError(f"{path} cannot be written: {reason}; choose another place: {option}") from error


def require_writable(path: Path) -> None:
    """Raise OSError if this path cannot be created, or if no file can be created in this folder. Leaves nothing behind.

    Missing parent folders are assumed to be created later.
    """
    folder, missing = (path, []) if path.is_dir() else (path.parent, [path.name])
    while not exists(folder) and folder != folder.parent:
        missing.append(folder.name)
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file")
    for name in missing:
        with suppress(FileNotFoundError):
            (folder / name).lstat()  # raises OSError if the name is too long
    # Permissions are not reliable for a superuser, a network file system or a full disk.
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))


def exists(path: Path) -> bool:
    """Whether a path exists. Raises OSError if that is unknown, for which `Path.exists` of Python 3.14 returns False.

    For example, the name is too long, the user may not enter the folder, or a network file system does not answer.
    """
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether a path is a regular file. Raises OSError if that is unknown, as `exists` does."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def delete(path: Path) -> None:
    """Delete a file if it exists."""
    _while_used(lambda: path.unlink(missing_ok=True))


def read_file(path: Path) -> bytes:
    """Return the content of a regular file. Raises OSError if it cannot be read, or is of another kind."""
    if path.exists() and not path.is_file():  # reading a pipe or a device might not end
        raise OSError("it is not a file")
    return path.read_bytes()


def append(path: Path, content: Content) -> None:
    """Append to a file. After a power cut, part of the content may be missing."""
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, so that a rename survives a power cut."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open a folder
        return
    try:
        with suppress(OSError):  # some network file systems do not support it, and the rename is done
            os.fsync(handle)
    finally:
        os.close(handle)


def delete_temporary_files(folder: Path) -> None:
    """Delete the temporary files that killed processes left in a folder and its subfolders.

    The caller must hold the lock of the folder, so that no other process is writing there.
    """
    for file in folder.rglob(".*.tmp"):
        if is_temporary(file):
            delete(file)


def is_temporary(file: Path, name: str | None = None) -> bool:
    """Whether a file is a temporary file of `write`. name: of the written file, or None for any."""
    match = _TEMPORARY.fullmatch(file.name)
    return match is not None and name in (None, match[1]) and file.is_file() and not file.is_symlink()


def to_json(value: Any, indent: int | None = None) -> str:
    """Return the value as JSON, with null for numbers that are not finite."""
    return json.dumps(_with_null(value), indent=indent, allow_nan=False)


def nulls_to_nan(value: Any) -> Any:
    """Return a value that was read from such JSON, with NaN for null."""
    if isinstance(value, dict):
        return {key: nulls_to_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nulls_to_nan(item) for item in value]
    return math.nan if value is None else value


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError if the path has a null character
        return None


def _while_used(action: Callable[[], object]) -> None:
    """Call a function that replaces or deletes a file, again after a pause if the file is in use.

    On Windows, no file can be replaced or deleted while another program reads it, such as a virus scanner.
    """
    for seconds in _PAUSES:
        try:
            action()
        except PermissionError:
            time.sleep(seconds)
        else:
            return
    action()


def _with_null(value: Any) -> Any:
    # JSON has no NaN or infinity. Python would write them as bare words, which other readers reject.
    if isinstance(value, Mapping):
        return {key: _with_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
