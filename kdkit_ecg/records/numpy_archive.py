"""Signals in NumPy archives (.npz), which contain several named arrays.

np.load is not used: it reads the list of all members for each array, and a whole array to get its shape.
"""

import io
import os
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.utils.record_files import NUMPY_SUFFIX

# Bytes at the start of an array. They state how many bytes numpy reads; compressed gigabytes may take few.
_MAX_HEADER = 16_384
# The header of a member in a ZIP file: its size, and the positions of the lengths of the name and of extra fields.
_LOCAL_HEADER, _LENGTHS = 30, slice(26, 30)


def archived_shapes(path: Path, leads: int, *, most: int) -> list[tuple[int, str, tuple[int, int]]]:
    """Return position, name and shape of the arrays with two axes, one of them with this many leads. Reads no array.

    Other arrays, such as labels, and other files are left out. most: the most numbers that an array may have, because
    even a small compressed file may contain any number. Raises DataError if none is left, or one has more numbers.
    """
    shapes = []
    with zipfile.ZipFile(path) as archive:
        for position, member in enumerate(archive.infolist()):
            if not member.filename.endswith(NUMPY_SUFFIX):
                continue
            with archive.open(member) as file:
                start = io.BytesIO(file.read(_MAX_HEADER))
            version = np.lib.format.read_magic(start)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(start)
            if len(shape) == 2 and leads in shape and dtype.kind in "iuf":
                if shape[0] * shape[1] > most:
                    raise DataError(f"expected at most {most:,} numbers in an array, got the shape {shape}")
                # All of it is read later, so it must not be larger than its shape needs.
                if member.file_size != start.tell() + shape[0] * shape[1] * dtype.itemsize:
                    raise DataError(f"the array {member.filename} has a different size than its shape {shape} needs")
                shapes.append((position, member.filename.removesuffix(NUMPY_SUFFIX), shape))
    if not shapes:
        raise DataError(f"expected an array of numbers with the axes time and {leads} leads; it has none")
    return shapes


def read_archived(path: Path, position: int | None) -> NDArray[Any]:
    """Return the array at a position of an archive. Objects, which would be unpickled, are refused."""
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        member = _members(path, state.st_size, state.st_mtime_ns)[position or 0]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"the array {member.filename} is compressed by a method that numpy does not use")
        # Not with zipfile, which reads the list of all members each time: an archive may have thousands.
        file.seek(member.header_offset)
        lengths = np.frombuffer(file.read(_LOCAL_HEADER)[_LENGTHS], "<u2")
        file.seek(int(lengths.sum()), os.SEEK_CUR)
        content = file.read(member.compress_size)
    if member.compress_type == zipfile.ZIP_DEFLATED:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.file_size)
    if zlib.crc32(content) != member.CRC:
        raise DataError(f"the array {member.filename} is damaged: its bytes do not match their checksum")
    values: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return values


@lru_cache(maxsize=8)
def _members(path: Path, size: int, changed: int) -> list[zipfile.ZipInfo]:
    """Return the members of an archive. size, changed: of the file, so that a replaced file is read again."""
    with zipfile.ZipFile(path) as archive:
        return archive.infolist()
