"""Read files of torch.save without running code from the file, and without using more memory than its size."""

import argparse
import io
import mmap
import pathlib
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

_ARCHIVE = b"PK\x03\x04"  # the start of a zip archive, which torch.save writes since torch 1.6
# A type and a function that torch allows in pickles. A bytearray may have any size that the file states, without having
# as many bytes in the file. The function encodes texts, which two encodings do in quadratic time.
_ANY_SIZE, _ENCODE = b"\nbytearray\n", b"\nencode\n"
_SLOW_ENCODINGS = re.compile(b"punycode|idna", re.IGNORECASE)

# Plain values that training programs save next to weights: arguments, paths, and metrics as numpy scalars. Unpickling
# these types does not run code from the file. The names differ between versions of numpy and Python.
_SAFE_TYPES: list[Any] = [
    argparse.Namespace,
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "?")),
    *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
]


def load_torch_file(path: Path) -> object:
    """Return the tensors and plain values in a file.

    Raises ValueError if the file could need more memory than its size. If it is damaged or holds other objects, torch
    raises almost any error: KeyError, IndexError, UnpicklingError, ...
    """
    with _BoundedFile(path) as file:
        if file.peek(4).startswith(_ARCHIVE):
            _require_plain_archive(file, path.stat().st_size)
        elif path.stat().st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _require_bounded(content)
        file.seek(0)
        # weights_only: a pickle could run any code
        with torch.serialization.safe_globals(_SAFE_TYPES):
            return torch.load(file, "cpu", weights_only=True)


class _BoundedFile(io.BufferedReader):
    """A file whose `read` never allocates more memory than the rest of the file has, whatever size a pickle states."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, at most `size`."""
        rest = max(0, self._size - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))


def _require_plain_archive(file: _BoundedFile, size: int) -> None:
    """Raise ValueError if the entries of an archive take more memory than the archive does."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        # torch would unpack compressed entries, although it never writes them, and entries that share their bytes.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is a compressed archive, but torch.save does not compress")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its entries have more bytes than the file")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                _require_bounded(archive.read(entry))


def _require_bounded(content: bytes | mmap.mmap) -> None:
    """Raise ValueError if a pickle could need much more memory or time than its size suggests."""
    if content.find(_ANY_SIZE) >= 0:
        raise ValueError("it holds a bytearray, which could have any size")
    if content.find(_ENCODE) >= 0 and _SLOW_ENCODINGS.search(content) is not None:
        raise ValueError("it holds a text in an encoding that could take very long")
