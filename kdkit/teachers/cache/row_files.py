"""The rows of one cache entry: read from and written to its files one by one, or held in memory a draw at a time."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from kdkit.teachers.cache.codec import Part
from kdkit.utils.positioned import read_into, write_at

# Draws up to this size are held in memory. A row of a larger draw takes a system call, about 1 us to read and 3 us to
# write.
_MEMORY_BYTES = 2**28
_GAP_BYTES = 2**12  # rows that are held are written together with those between them, up to this many bytes


def open_rows(path: Path, parts: Sequence[Part], samples: int) -> "RowFiles":
    """Open the files of an entry with this number of rows per draw. Draws are held in memory if they are small."""
    most = _MEMORY_BYTES // max(1, sum(part.bytes for part in parts) * samples)
    return HeldRows(path, parts, samples, most) if most else RowFiles(path, parts, samples)


class RowFiles:
    """The files of an entry, one for each part, which hold the rows of one draw after the other.

    Files are read and written by position and never memory-mapped, so that a truncated file or a full disk raises
    OSError instead of killing the process.
    """

    def __init__(self, path: Path, parts: Sequence[Part], samples: int) -> None:
        self._samples = samples
        with ExitStack() as files:
            # Unbuffered, so that other processes see the rows.
            self._files = [(part, files.enter_context((path / part.name).open("r+b", buffering=0))) for part in parts]
            self.close = files.pop_all().close

    def read(self, draw: int, rows: Tensor) -> tuple[Tensor, ...]:
        """Return copies of rows, with arbitrary values for rows that were never written."""
        parts = []
        for part, file in self._files:
            values, size = torch.empty(len(rows), *part.shape, dtype=part.dtype), part.bytes
            content = bytes_of(values)
            for number, row in enumerate(rows.tolist()):
                _fill(content[number * size : (number + 1) * size], file, (draw * self._samples + row) * size)
            parts.append(values)
        return tuple(parts)

    def write(self, draw: int, rows: Tensor, parts: Sequence[Tensor]) -> None:
        """Write rows. Raises OSError if the disk is full."""
        for (part, file), values in zip(self._files, parts, strict=True):
            content, size = bytes_of(values), part.bytes
            for number, row in enumerate(rows.tolist()):
                write_at(file, content[number * size : (number + 1) * size], (draw * self._samples + row) * size)

    def flush(self) -> None:
        """Force written rows to the disk."""
        for _, file in self._files:
            os.fsync(file.fileno())

    def refresh(self, draws: set[int]) -> None:
        """Read what another process has written. draws: those that have rows in the files."""


class HeldRows(RowFiles):
    """Holds up to `most` draws in memory: each is read as a whole, and its new rows are written by a flush.

    New rows of a draw that makes room for another one are written too.
    """

    def __init__(self, path: Path, parts: Sequence[Part], samples: int, most: int) -> None:
        super().__init__(path, parts, samples)
        self._most = most
        self._held: dict[int, tuple[Tensor, ...]] = {}  # parts by draw, the most recently used draw last
        self._unsaved: dict[int, list[Tensor]] = {}  # rows by draw that are not in the files yet
        self._stored: set[int] = set()  # draws that have rows in the files

    def read(self, draw: int, rows: Tensor) -> tuple[Tensor, ...]:
        """Return copies of rows, with arbitrary values for rows that were never written."""
        return tuple([held.index_select(0, rows) for held in self._hold(draw)])

    def write(self, draw: int, rows: Tensor, parts: Sequence[Tensor]) -> None:
        """Change rows in memory."""
        for held, values in zip(self._hold(draw), parts, strict=True):
            held.index_copy_(0, rows, values)
        self._unsaved.setdefault(draw, []).append(rows)

    def flush(self) -> None:
        """Write new rows, and force them to the disk."""
        for draw in [*self._unsaved]:
            self._save(draw)
        super().flush()

    def refresh(self, draws: set[int]) -> None:
        """Forget the draws in memory, which are read again."""
        self._stored = draws
        self._held.clear()

    def _hold(self, draw: int) -> tuple[Tensor, ...]:
        """Return all rows of a draw, which become the most recently used ones."""
        held = self._held.pop(draw, None)
        if held is None:
            while len(self._held) >= self._most:
                oldest = next(iter(self._held))
                self._save(oldest)
                del self._held[oldest]
            held = tuple(torch.zeros(self._samples, *part.shape, dtype=part.dtype) for part, _ in self._files)
            if draw in self._stored:
                for (part, file), values in zip(self._files, held, strict=True):
                    _fill(bytes_of(values), file, draw * self._samples * part.bytes)
        self._held[draw] = held
        return held

    def _save(self, draw: int) -> None:
        """Write the new rows of a draw in few system calls, together with the few rows between them."""
        new = self._unsaved.pop(draw, None)
        if new is None:
            return
        self._stored.add(draw)
        rows = torch.cat(new).sort().values
        for (part, file), held in zip(self._files, self._held[draw], strict=True):
            content, size = bytes_of(held), part.bytes
            is_apart = (rows.diff() - 1) * size > _GAP_BYTES
            for group in rows.tensor_split(is_apart.nonzero().flatten() + 1):
                first, end = int(group[0]), int(group[-1]) + 1
                write_at(file, content[first * size : end * size], (draw * self._samples + first) * size)


def bytes_of(values: Tensor) -> memoryview:
    """Return the memory of contiguous values as bytes."""
    return values.reshape(-1).view(torch.uint8).numpy().data


def _fill(buffer: memoryview, file: IO[bytes], offset: int) -> None:
    if read_into(file.fileno(), buffer, offset) < len(buffer):
        raise OSError(f"{file.name} was truncated by another process")
