"""The rules of Windows. Python imports this module when it starts, since its folder is on PYTHONPATH."""

import builtins
import contextlib
import errno
import functools
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import context
from typing import Any

TOKEN = f"EMULATED_WINDOWS={os.environ.get('EMULATED_WINDOWS')}".encode()
ENCODING = "cp1252"
TICK = 1 / 64  # seconds between two values of a clock
FORBIDDEN = re.compile(r'[<>:"|?*\\\0-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)

_local = threading.local()  # is_checking: whether this thread applies a rule, which itself reads files


def install() -> None:
    """Apply the rules to this process."""
    sys.addaudithook(_audit)
    builtins.open = io.open = _in_encoding(io.open)
    subprocess.Popen.__init__ = _texts_in_encoding(subprocess.Popen.__init__)  # type: ignore[method-assign]  # replaced in all callers
    context._default_context._default_context = context._concrete_contexts["spawn"]  # type: ignore[attr-defined]  # private
    context._default_context.get_all_start_methods = lambda: ["spawn"]  # type: ignore[method-assign]  # replaced in all callers
    time.time, time.monotonic = _in_ticks(time.time), _in_ticks(time.monotonic)
    # On Linux, these open folders, or delete files that are open.
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # private
    # From Python 3.14 on, shutil has chosen the function when it is imported.
    shutil._rmtree_impl = shutil._rmtree_unsafe  # type: ignore[attr-defined]  # private
    tempfile.TemporaryFile = _without_rules(tempfile.TemporaryFile)  # type: ignore[misc]  # an overloaded function


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise the error of Windows before an operation that Linux would allow."""
    rule = RULES.get(event)
    if rule is None or getattr(_local, "is_checking", False):
        return
    _local.is_checking = True
    try:
        rule(*arguments)
    finally:
        _local.is_checking = False


def _open(path: Any, mode: str | None, flags: int) -> None:
    if isinstance(path, int) or os.fsdecode(path).startswith(("/proc/", "/dev/", "/sys/")):
        return
    path = os.path.abspath(os.fsdecode(path))
    if os.path.isdir(path) and flags & os.O_ACCMODE == os.O_RDONLY:  # Linux itself refuses the others
        raise PermissionError(errno.EACCES, "Permission denied", path)
    if not os.path.lexists(path):
        _require_name(path)
        if flags & os.O_CREAT:
            _require_no_other_case(path)
    elif flags & os.O_TRUNC and any(os.fsencode(f"{path}\n") in _maps(process) for process in _processes()):
        raise OSError(errno.EINVAL, "a file that is mapped to memory cannot be truncated", path)


def _create_folder(path: Any, *_: Any) -> None:
    path = os.path.abspath(os.fsdecode(path))
    if not os.path.lexists(path):
        _require_name(path)
        _require_no_other_case(path)


def _delete(path: Any, *_: Any) -> None:
    _require_unused(path)


def _rename(source: Any, target: Any, *_: Any) -> None:
    _require_unused(source)
    _create_folder(target)
    if os.path.lexists(target):
        _require_unused(target)


RULES = {"open": _open, "os.mkdir": _create_folder, "os.remove": _delete, "os.rmdir": _delete, "os.rename": _rename}


def _require_name(path: str) -> None:
    for part in path.split("/")[1:]:
        if FORBIDDEN.search(part):
            raise OSError(errno.EINVAL, "the name is not allowed on Windows", path)


def _require_no_other_case(path: str) -> None:
    folder, name = os.path.split(path)
    others = os.listdir(folder) if os.path.isdir(folder) else []
    if any(other.lower() == name.lower() for other in others if other != name):
        raise OSError(errno.EEXIST, "a file or folder has this name in other letters", path)


def _require_unused(path: Any) -> None:
    """Raise PermissionError if a process has opened or mapped a file, or a file in a folder."""
    path = os.fsencode(path)
    path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    # The name may be followed by that of a file in the folder.
    used = re.compile(re.escape(path) + rb"(/|$)", re.MULTILINE)
    for process in _processes():
        if any(used.match(file) for file in _opened(process)) or used.search(_maps(process)):
            raise PermissionError(errno.EACCES, "the file is being used by a process", os.fsdecode(path))


def _opened(process: str) -> Iterator[bytes]:
    """Yield the open files of a process, and its current folder."""
    try:
        yield os.readlink(f"/proc/{process}/cwd".encode())
        for number in os.listdir(f"/proc/{process}/fd"):
            with contextlib.suppress(OSError):  # it was closed
                yield os.readlink(f"/proc/{process}/fd/{number}".encode())
    except OSError:  # the process has ended
        return


def _maps(process: str) -> bytes:
    """Return the files that a process has mapped, each at the end of a line."""
    try:
        with io.FileIO(f"/proc/{process}/maps") as file:
            return file.readall()
    except OSError:
        return b""


def _processes() -> list[str]:
    """Return the numbers of the processes that follow the rules, together with this one."""
    return [name for name in os.listdir("/proc") if name.isdigit() and _follows(name)]


@functools.lru_cache(4096)
def _follows(process: str) -> bool:
    try:
        with io.FileIO(f"/proc/{process}/environ") as file:
            return process == str(os.getpid()) or TOKEN in file.readall().split(b"\0")
    except OSError:
        return False


def _in_encoding(function: Any) -> Any:
    """Return `open` with the encoding and the line ends of Windows for texts."""
    signature = inspect.signature(function)

    def call(*args: Any, **options: Any) -> Any:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        if "b" not in bound.arguments["mode"]:
            if bound.arguments["encoding"] in (None, "locale"):
                bound.arguments["encoding"] = ENCODING
            if bound.arguments["newline"] is None and not {"r", "+"} & {*bound.arguments["mode"]}:
                bound.arguments["newline"] = "\r\n"
        return function(*bound.args, **bound.kwargs)

    return functools.wraps(function)(call)


def _texts_in_encoding(function: Any) -> Any:
    def call(self: Any, *args: Any, **more: Any) -> None:
        if more.get("text") or more.get("universal_newlines"):
            more["encoding"] = more.get("encoding") or ENCODING
        function(self, *args, **more)

    return functools.wraps(function)(call)


def _without_rules(function: Any) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        _local.is_checking = True
        try:
            return function(*args, **options)
        finally:
            _local.is_checking = False

    return functools.wraps(function)(call)


def _in_ticks(clock: Any) -> Any:
    return functools.wraps(clock)(lambda: clock() // TICK * TICK)


install()
