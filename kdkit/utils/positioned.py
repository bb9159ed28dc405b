"""Read from and write to a position of a file, so that truncated files and full disks raise errors, not signals.

If a memory-mapped file is truncated, or its disk cannot be read, SIGBUS ends the process.
"""

import errno
import os
import sys
import threading
from typing import IO, Any

_SEEKING = threading.Lock()  # for Windows, where a file has one position for all threads


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read bytes from a position of a file into a buffer, and return their number.

    buffer: of bytes, with one dimension; it is filled unless the file ends earlier. Raises OSError if the file cannot
    be read.
    """
    size = _read_once(descriptor, buffer, offset)
    while 0 < size < len(buffer):  # a signal, a network file system or Linux, at 2 GB, may cut a read short
        more = _read_once(descriptor, buffer[size:], offset + size)
        if not more:
            break
        size += more
    return size


def write_at(file: IO[bytes], content: Any, offset: int) -> None:
    """Write bytes to a position of an unbuffered file. Raises OSError if the disk has no room for all of them."""
    file.seek(offset)
    # A raw file may write only part of the content, without an error.
    if file.write(content) < memoryview(content).nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.name))


if sys.platform == "win32":

    def _read_once(descriptor: int, buffer: memoryview, offset: int) -> int:
        with _SEEKING:
            os.lseek(descriptor, offset, os.SEEK_SET)
            content = os.read(descriptor, len(buffer))
        buffer[: len(content)] = content
        return len(content)

else:

    def _read_once(descriptor: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(descriptor, (buffer,), offset)
