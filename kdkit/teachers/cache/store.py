"""The open files of one cache entry: rows are read and written by position, and verified on their first read."""

import math
import os
import time
import uuid
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from filelock import Timeout
from numpy.typing import NDArray
from torch import Tensor

from kdkit.teachers.cache.codec import Part
from kdkit.teachers.cache.entry import CHECKSUM_BYTES, CHECKSUMS, IDS, USED
from kdkit.utils.locks import FileLock
from kdkit.utils.positioned import read_into, write_at

_FLUSH_SECONDS = 5.0  # the minimum time between two flushes
_FLUSH_RATIO = 100  # the pause after a flush, as a multiple of its duration: a slow disk must not delay training
# Draws up to this size are held in memory, and written by a flush. A row of a larger draw takes a system call, about 1
# us to read and 3 us to write.
_MEMORY_BYTES = 2**28
_GAP_BYTES = 2**12  # rows that are held are written together with those between them, up to this many bytes

# The states of a row:
_MISSING, _UNVERIFIED, _INTACT, _DAMAGED = range(4)


class CachedRows(NamedTuple):
    """The rows of samples in a store, (samples,), and which of them are hits, (samples,) bool; None if all are.

    parts: a copy of the rows of each part, with arbitrary values for misses; () if there are no hits. damaged: whether
    some of the misses had been written.
    """

    draw: int
    rows: Tensor
    hits: Tensor | None
    parts: tuple[Tensor, ...]
    damaged: bool = False


class NewOutputs(NamedTuple):
    """Outputs for the samples with these ids, (samples,) int64, in one draw: a tensor (samples, ...) for each part."""

    draw: int
    ids: Tensor
    parts: tuple[Tensor, ...]


class Store:
    """An open cache entry. The process that holds its lock writes; other processes read what was flushed.

    Files are read and written by position and never memory-mapped, so that a truncated file or a full disk raises
    OSError instead of killing the process. Each row has a checksum, which is written after the row itself is on the
    disk; a row without a checksum was not written. The checksum is compared when this process first reads the row. A
    row that does not match is a miss.

    damaged: the number of rows that did not match. not_finite: the number of rows that were not written because they
    contain NaN or infinity.
    """

    def __init__(self, path: Path, parts: Sequence[Part], samples: int, draws: int) -> None:
        self.path, self.parts, self.samples, self.draws = path, tuple(parts), samples, draws
        self.writes = False  # whether this process holds the lock
        self.damaged = self.not_finite = 0
        self._damaged_rows: set[tuple[int, int]] = set()  # (draw, row), so that each row is counted once
        self._use = FileLock(path / "uses" / uuid.uuid4().hex)  # prevents the deletion of the entry
        self._lock = FileLock(path / ".writing")
        self._files: list[IO[bytes]] = []
        self._changed_draws: set[int] = set()  # since the last flush
        self._flushed, self._pause = time.monotonic(), _FLUSH_SECONDS
        self._state = torch.full((draws, samples), _MISSING, dtype=torch.uint8)
        self._checksums = np.zeros((draws, samples), dtype="<u4")
        self._intact_draws: set[int] = set()
        draw_bytes = max(1, sum(part.bytes for part in self.parts) * samples)
        self._most_held = _MEMORY_BYTES // draw_bytes  # the most draws that are held in memory
        self._held: dict[int, tuple[Tensor, ...]] = {}  # parts by draw, the most recently used draw last
        self._unsaved: dict[int, list[Tensor]] = {}  # rows of held draws that are not in the files yet
        self._use.acquire(timeout=0)
        try:
            self.ids = torch.frombuffer(bytearray((path / IDS).read_bytes()), dtype=torch.int64)
            # For an id beyond the last, searchsorted returns `samples`, and `_rows_of` compares it with the first id.
            self._ids_or_first = torch.cat([self.ids, self.ids[:1]])
            self._are_consecutive = samples > 0 and int(self.ids[-1]) - int(self.ids[0]) == samples - 1
            for name in (*(part.name for part in parts), CHECKSUMS):
                # Unbuffered, so that other processes see the rows.
                self._files.append((path / name).open("r+b", buffering=0))
            self.refresh()
        except BaseException:
            self.close()
            raise

    @property
    def written(self) -> Tensor:
        """Which rows have an output, (draws, samples) bool, as far as this process knows."""
        return (self._state == _UNVERIFIED) | (self._state == _INTACT)

    def read(self, ids: Tensor, draw: int) -> CachedRows | None:
        """Return the rows of the samples with these ids, (samples,); None if the entry lacks a row for one of them.

        Rows that this process reads for the first time are verified. Raises OSError if a file was truncated or cannot
        be read.
        """
        rows = self._rows_of(ids, draw)
        if rows is None:
            return None
        if draw in self._intact_draws:
            return CachedRows(draw, rows, None, self._copies(draw, rows))
        parts = self._verify(draw, rows)
        states = self._state[draw].index_select(0, rows)
        hits = states == _INTACT
        if bool(hits.all()):
            return CachedRows(draw, rows, None, parts or self._copies(draw, rows))
        parts = self._copies_of_hits(draw, rows, hits) if bool(hits.any()) else ()
        return CachedRows(draw, rows, hits, parts, damaged=bool((states == _DAMAGED).any()))

    def write(self, draw: int, rows: Tensor, parts: Sequence[Tensor]) -> None:
        """Write the parts of these rows, except rows with NaN or infinity. Raises OSError if the disk is full.

        Rows of a draw that is held in memory are in the files after the next flush.
        """
        finite = self._are_finite(parts)
        if not bool(finite.all()):
            self.not_finite += int((~finite).sum())
            rows, parts = rows[finite], [part[finite] for part in parts]
        if not len(rows):
            return
        if self._most_held:
            for held, values in zip(self._held_draw(draw), parts, strict=True):
                held.index_copy_(0, rows, values)
            self._unsaved.setdefault(draw, []).append(rows)
        else:
            self._write_rows(draw, rows, parts)
        self._checksums[draw, rows.numpy()] = self._checksums_of(draw, rows, parts)
        self._state[draw].index_fill_(0, rows, _INTACT)
        self._changed_draws.add(draw)
        if time.monotonic() - self._flushed > self._pause:
            self.flush()

    def merge(self, new: NewOutputs) -> None:
        """Write the outputs of another process of the run, except rows that are already written."""
        rows = self._rows_of(new.ids, new.draw) if self.writes else None
        if rows is None:
            return
        self._verify(new.draw, rows)
        missing = (self._state[new.draw].index_select(0, rows) != _INTACT).nonzero().flatten()
        if len(missing):
            self.write(new.draw, rows[missing], [part[missing] for part in new.parts])

    def flush(self) -> None:
        """Force written rows to the disk, and then their checksums."""
        if not self._changed_draws:
            return
        began = time.monotonic()
        for draw in [*self._unsaved]:
            self._write_held(draw)
        *data, checksums = self._files
        for file in data:
            os.fsync(file.fileno())
        for draw in self._changed_draws:
            write_at(checksums, self._checksums[draw].tobytes(), draw * self.samples * CHECKSUM_BYTES)
        os.fsync(checksums.fileno())
        self._changed_draws = set()
        self._flushed = time.monotonic()
        self._pause = max(_FLUSH_SECONDS, _FLUSH_RATIO * (self._flushed - began))

    def refresh(self) -> None:
        """Read the rows that another process has flushed. If that process has ended, this one becomes the writer."""
        if not self.writes:
            try:
                self._lock.acquire(timeout=0)
                self.writes = True
            except Timeout:
                pass
            # Read after the lock is acquired, so that no row is missed that was flushed in between.
            checksums = np.zeros_like(self._checksums)
            # Checksums beyond the end of a truncated file stay 0: their rows were not written.
            read_into(self._files[-1].fileno(), checksums.reshape(-1).view(np.uint8).data, 0)
            same = torch.from_numpy(checksums == self._checksums) & (self._state == _INTACT)
            written = torch.from_numpy(checksums != 0)
            self._state = torch.where(same, _INTACT, torch.where(written, _UNVERIFIED, _MISSING)).to(torch.uint8)
            self._checksums = checksums
        self._find_intact_draws()

    def abandon(self) -> None:
        """Close without the rows that were written since the last flush."""
        self._changed_draws = set()
        self.close()

    def close(self) -> None:
        """Flush, and let other processes write to the entry or delete it."""
        try:
            self.flush()
        finally:
            for file in self._files:
                file.close()
            self._lock.release()
            self._use.release()
            with suppress(OSError):  # the folder may have been deleted
                Path(self._use.lock_file).unlink(missing_ok=True)
                (self.path / USED).touch()

    def _rows_of(self, ids: Tensor, draw: int) -> Tensor | None:
        """Return the rows of the samples with these ids, (samples,); None if the entry lacks a row for one of them."""
        ids = ids.to("cpu", torch.int64).contiguous()
        if self._are_consecutive:  # ten times as fast as a search among millions of samples
            rows = (ids - self.ids[0]).clamp_(0, self.samples)
        else:
            rows = torch.searchsorted(self.ids, ids)
        is_known = 0 <= draw < self.draws and torch.equal(self._ids_or_first.index_select(0, rows), ids)
        return rows if is_known else None

    def _copies(self, draw: int, rows: Tensor) -> tuple[Tensor, ...]:
        if self._most_held:
            return tuple([held.index_select(0, rows) for held in self._held_draw(draw)])
        return self._read_rows(draw, rows, complete=True)

    def _copies_of_hits(self, draw: int, rows: Tensor, hits: Tensor) -> tuple[Tensor, ...]:
        """Return copies of rows, with arbitrary values for misses, which are not read from the files."""
        if self._most_held:
            return self._copies(draw, rows)
        positions = hits.nonzero().flatten()
        parts = self._copies(draw, rows[positions])
        empty = [part.new_zeros(len(rows), *part.shape[1:]) for part in parts]
        return tuple(values.index_copy_(0, positions, part) for values, part in zip(empty, parts, strict=True))

    def _verify(self, draw: int, rows: Tensor) -> tuple[Tensor, ...]:
        """Verify the checksums of unverified rows: of the whole draw if draws are held in memory, otherwise of `rows`.

        Returns the parts of `rows` if all of them were read from the files and match, otherwise ().
        """
        unverified = rows[self._state[draw].index_select(0, rows) == _UNVERIFIED]
        if not len(unverified):
            return ()
        if self._most_held:
            self._verify_draw(draw)
            return ()
        parts = self._read_rows(draw, unverified, complete=False)
        are_intact = self._compare_checksums(draw, unverified, self._checksums_of(draw, unverified, parts))
        return parts if are_intact and len(unverified) == len(rows) else ()

    def _verify_draw(self, draw: int) -> None:
        """Read the unverified rows of a draw into memory, and verify their checksums."""
        rows = (self._state[draw] == _UNVERIFIED).nonzero().flatten()
        if draw in self._held:
            parts = self._read_rows(draw, rows, complete=False)
            checksums = self._checksums_of(draw, rows, parts)
            for held, part in zip(self._held_draw(draw), parts, strict=True):
                held.index_copy_(0, rows, part)
        else:  # read as a whole, and in place because it may be large
            checksums = self._checksums_of(draw, rows, self._read_draw(draw), in_draw=True)
        self._compare_checksums(draw, rows, checksums)
        self._find_intact_draws()

    def _compare_checksums(self, draw: int, rows: Tensor, checksums: NDArray[np.uint32]) -> bool:
        """Mark the rows as intact or damaged by the checksums of what was read, and return whether all are intact."""
        intact = torch.from_numpy(checksums == self._checksums[draw, rows.numpy()])
        self._state[draw].index_copy_(0, rows, torch.where(intact, _INTACT, _DAMAGED).to(torch.uint8))
        if bool(intact.all()):
            return True
        self._count_damaged(draw, rows[~intact])
        return False

    def _count_damaged(self, draw: int, rows: Tensor) -> None:
        new = {(draw, row) for row in rows.tolist()} - self._damaged_rows
        self._damaged_rows |= new
        self.damaged += len(new)
        if self.writes:  # the next flush removes them from the file, unless they are written again before that
            self._checksums[draw, rows.numpy()] = 0
            self._changed_draws.add(draw)

    def _read_rows(self, draw: int, rows: Tensor, *, complete: bool) -> tuple[Tensor, ...]:
        """Return rows of each part. Beyond the end of a truncated file they are 0, or with `complete` raise OSError."""
        parts = []
        for file, part in zip(self._files, self.parts, strict=False):
            values = torch.empty(len(rows), *part.shape, dtype=part.dtype)
            content, size = _bytes_of(values), part.bytes
            for number, row in enumerate(rows.tolist()):
                row_bytes = content[number * size : (number + 1) * size]
                read = read_into(file.fileno(), row_bytes, (draw * self.samples + row) * size)
                if read < size:
                    if complete:
                        raise OSError(f"{file.name} was truncated by another process")
                    row_bytes[read:] = bytes(size - read)
            parts.append(values)
        return tuple(parts)

    def _write_rows(self, draw: int, rows: Tensor, parts: Sequence[Tensor]) -> None:
        for file, part, values in zip(self._files, self.parts, parts, strict=False):
            content, size = _bytes_of(values), part.bytes
            for number, row in enumerate(rows.tolist()):
                write_at(file, content[number * size : (number + 1) * size], (draw * self.samples + row) * size)

    def _write_held(self, draw: int) -> None:
        """Write the unsaved rows of a draw that is held in memory, in few system calls.

        Rows between them are written too, except rows that were never read: what is held of these is arbitrary.
        """
        rows = torch.cat(self._unsaved.pop(draw)).sort().values
        unread = (self._state[draw] == _UNVERIFIED).cumsum(0).index_select(0, rows)
        for file, part, held in zip(self._files, self.parts, self._held[draw], strict=False):
            content, size = _bytes_of(held), part.bytes
            is_apart = ((rows.diff() - 1) * size > _GAP_BYTES) | (unread.diff() > 0)
            for group in rows.tensor_split(is_apart.nonzero().flatten() + 1):
                first, end = int(group[0]), int(group[-1]) + 1
                write_at(file, content[first * size : end * size], (draw * self.samples + first) * size)

    def _read_draw(self, draw: int) -> tuple[Tensor, ...]:
        """Read all rows of a draw and hold them in memory. Rows beyond the end of a truncated file are 0."""
        parts = self._held_draw(draw)
        for file, part, values in zip(self._files, self.parts, parts, strict=False):
            read_into(file.fileno(), _bytes_of(values), draw * self.samples * part.bytes)
        return parts

    def _held_draw(self, draw: int) -> tuple[Tensor, ...]:
        """Return the parts of a draw that are held in memory, with arbitrary values for misses."""
        held = self._held.pop(draw, None)
        if held is None:
            held = tuple(torch.zeros(self.samples, *part.shape, dtype=part.dtype) for part in self.parts)
            while len(self._held) >= self._most_held:
                oldest = next(iter(self._held))
                if oldest in self._unsaved:
                    self._write_held(oldest)
                del self._held[oldest]
                # On its next use, the draw is read from the disk and verified again.
                self._state[oldest][self._state[oldest] == _INTACT] = _UNVERIFIED
                self._intact_draws.discard(oldest)
        self._held[draw] = held
        return held

    def _checksums_of(
        self, draw: int, rows: Tensor, parts: Sequence[Tensor], *, in_draw: bool = False
    ) -> NDArray[np.uint32]:
        """Return the checksum of each row over all parts. It is never 0, which means that a row was not written.

        in_draw: whether the parts have all rows of the draw, not only `rows`.
        """
        # The position of the row is the start value, so that a row in the wrong position does not match.
        first = draw * self.samples
        sums = [(first + row) % 2**32 for row in rows.tolist()]
        positions = rows.tolist() if in_draw else range(len(rows))
        for part, values in zip(self.parts, parts, strict=True):
            content, size = _bytes_of(values), part.bytes
            sums = [
                zlib.crc32(content[position * size : (position + 1) * size], value)
                for position, value in zip(positions, sums, strict=True)
            ]
        return np.array([value or 1 for value in sums], dtype=np.uint32)

    def _are_finite(self, parts: Sequence[Tensor]) -> Tensor:
        """Return which rows can be cached, (rows,) bool. Logits may be -inf, for example of masked classes."""
        finite = torch.ones(len(parts[0]), dtype=torch.bool)
        for part, values in zip(self.parts, parts, strict=True):
            if bool(values.sum().isfinite()):  # then all values are finite: the usual case, in one fast pass
                continue
            allowed = values.isfinite()
            if part.name == "output" and values.is_floating_point():
                allowed |= values.isneginf()
            finite &= allowed.reshape(len(values), math.prod(part.shape)).all(1)
        return finite

    def _find_intact_draws(self) -> None:
        self._intact_draws = {draw for draw, intact in enumerate((self._state == _INTACT).all(1).tolist()) if intact}


def _bytes_of(values: Tensor) -> memoryview:
    """Return the memory of contiguous values as bytes."""
    return values.reshape(-1).view(torch.uint8).numpy().data
