"""Signals in NumPy archives (.npz), which have several arrays under names."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError

NPZ_SUFFIX = ".npz"
# Bytes at the start of an array, of which numpy reads as many as these demand: compressed, gigabytes take few.
_MAX_HEADER = 16_384


def archived_shapes(path: Path, leads: int, *, most: int) -> list[tuple[int, str, tuple[int, int]]]:
    """Return position, name and shape of the arrays with two axes, of which one has so many leads. Reads no array.

    Other arrays, such as labels, are left out. most: the numbers that an array may have: its file is compressed, and
    may be small. Raises DataError if none is left, or one has more numbers.
    """
    shapes = []
    with zipfile.ZipFile(path) as archive:
        for position, member in enumerate(archive.namelist()):
            with archive.open(member) as file:
                start = io.BytesIO(file.read(_MAX_HEADER))
            version = np.lib.format.read_magic(start)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(start)
            if len(shape) == 2 and leads in shape and dtype.kind in "iuf":
                if shape[0] * shape[1] > most:
                    raise DataError(f"expected at most {most:,} numbers of an array, got the shape {shape}")
                shapes.append((position, member.removesuffix(".npy"), shape))
    if not shapes:
        raise DataError(f"expected an array of numbers with the axes time and {leads} leads; it has none")
    return shapes


def read_archived(path: Path, position: int | None) -> NDArray[Any]:
    """Return the array at a position of an archive. Objects, which would be unpickled, are refused."""
    with np.load(path, allow_pickle=False) as archive:
        values: NDArray[Any] = archive[archive.files[position or 0]]
    return values
