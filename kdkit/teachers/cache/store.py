"""An open cache entry: rows are found by sample id, verified on their first read, and written by one process."""

import math
import os
import time
import uuid
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import Timeout
from numpy.typing import NDArray
from torch import Tensor

from kdkit.teachers.cache.codec import Part
from kdkit.teachers.cache.entry import CHECKSUM_BYTES, CHECKSUMS, IDS, USED
from kdkit.teachers.cache.row_files import bytes_of, open_rows
from kdkit.utils.locks import FileLock
from kdkit.utils.positioned import read_into, write_at

_FLUSH_SECONDS = 5.0  # the minimum time between two flushes
_FLUSH_RATIO = 100  # the pause after a flush, as a multiple of its duration: a slow disk must not delay training


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

    Each row has a checksum, which is written after the row itself is on the disk; a row without a checksum was not
    written. The checksum is compared when this process first reads the row. A row that does not match is a miss.

    not_finite: the number of rows that were not written because they contain NaN or infinity.
    """

    def __init__(self, path: Path, parts: Sequence[Part], samples: int, draws: int) -> None:
        self.path, self.parts, self.samples, self.draws = path, tuple(parts), samples, draws
        self.writes = False  # whether this process holds the lock
        self.not_finite = 0
        self._checksums = np.zeros((draws, samples), dtype="<u4")  # 0 for rows that were not written, or are damaged
        self._verified, self._damaged = np.zeros((2, draws, samples), dtype=np.bool_)
        self._verified_draws: set[int] = set()  # as a whole
        self._changed_draws: set[int] = set()  # whose checksums have changed since the last flush
        self._flushed, self._pause = time.monotonic(), _FLUSH_SECONDS
        self._use = FileLock(path / "uses" / uuid.uuid4().hex)  # prevents the deletion of the entry
        self._lock = FileLock(path / ".writing")
        self._use.acquire(timeout=0)
        with ExitStack() as resources:
            resources.callback(self._release)
            self.ids = torch.frombuffer(bytearray((path / IDS).read_bytes()), dtype=torch.int64)
            # For an id beyond the last, searchsorted returns `samples`, and `_rows_of` compares it with the first id.
            self._ids_or_first = torch.cat([self.ids, self.ids[:1]])
            self._are_consecutive = samples > 0 and int(self.ids[-1]) - int(self.ids[0]) == samples - 1
            self._rows = resources.enter_context(closing(open_rows(path, self.parts, samples)))
            self._checksum_file = resources.enter_context((path / CHECKSUMS).open("r+b", buffering=0))
            self.refresh()
            self._resources = resources.pop_all()

    @property
    def written(self) -> Tensor:
        """Which rows have an output, (draws, samples) bool, as far as this process knows."""
        return torch.from_numpy(self._checksums != 0)

    @property
    def damaged(self) -> int:
        """The number of rows that did not match their checksums."""
        return int(self._damaged.sum())

    def read(self, ids: Tensor, draw: int) -> CachedRows | None:
        """Return the rows of the samples with these ids, (samples,); None if the entry lacks a row for one of them.

        Rows that this process reads for the first time are verified. Raises OSError if a file was truncated or cannot
        be read.
        """
        rows = self._rows_of(ids, draw)
        if rows is None:
            return None
        if draw in self._verified_draws:
            return CachedRows(draw, rows, None, self._rows.read(draw, rows))
        parts = self._verify(draw, rows)
        hits = self._verified[draw, rows.numpy()]
        if hits.all():
            return CachedRows(draw, rows, None, parts or self._rows.read(draw, rows))
        parts = (parts or self._rows.read(draw, rows)) if hits.any() else ()
        damaged = bool(self._damaged[draw, rows.numpy()][~hits].any())
        return CachedRows(draw, rows, torch.from_numpy(hits), parts, damaged)

    def write(self, draw: int, rows: Tensor, parts: Sequence[Tensor]) -> None:
        """Write the parts of these rows, except rows with NaN or infinity. Raises OSError if the disk is full.

        They are sure to be in the files after the next flush.
        """
        finite = self._are_finite(parts)
        if not bool(finite.all()):
            self.not_finite += int((~finite).sum())
            rows, parts = rows[finite], [part[finite] for part in parts]
        if not len(rows):
            return
        self._rows.write(draw, rows, parts)
        self._checksums[draw, rows.numpy()] = self._checksums_of(draw, rows, parts)
        self._verified[draw, rows.numpy()] = True
        self._changed_draws.add(draw)
        if time.monotonic() - self._flushed > self._pause:
            self.flush()

    def merge(self, new: NewOutputs) -> None:
        """Write the outputs of another process of the run, except rows that are already written."""
        rows = self._rows_of(new.ids, new.draw) if self.writes else None
        if rows is None:
            return
        self._verify(new.draw, rows)
        missing = torch.from_numpy(~self._verified[new.draw, rows.numpy()])
        if bool(missing.any()):
            self.write(new.draw, rows[missing], [part[missing] for part in new.parts])

    def flush(self) -> None:
        """Force written rows to the disk, and then their checksums."""
        if not self._changed_draws:
            return
        began = time.monotonic()
        self._rows.flush()
        for draw in self._changed_draws:
            offset = draw * self.samples * CHECKSUM_BYTES
            write_at(self._checksum_file, self._checksums[draw].tobytes(), offset)
        os.fsync(self._checksum_file.fileno())
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
            read_into(self._checksum_file.fileno(), checksums.reshape(-1).view(np.uint8).data, 0)
            if not np.array_equal(checksums, self._checksums):
                self._verified &= checksums == self._checksums
                self._checksums = checksums
                self._rows.refresh({*np.flatnonzero(checksums.any(1)).tolist()})
        self._verified_draws = set(np.flatnonzero(self._verified.all(1)).tolist())

    def abandon(self) -> None:
        """Close without the rows that were written since the last flush."""
        self._changed_draws = set()
        self.close()

    def close(self) -> None:
        """Flush, and let other processes write to the entry or delete it."""
        with self._resources:
            self.flush()

    def _release(self) -> None:
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

    def _verify(self, draw: int, rows: Tensor) -> tuple[Tensor, ...]:
        """Compare the checksums of written rows that this process has not read yet.

        Returns the parts of `rows` if all of them were read, otherwise ().
        """
        written = self._checksums[draw, rows.numpy()]
        unread = (written != 0) & ~self._verified[draw, rows.numpy()]
        if not unread.any():
            return ()
        read = rows[torch.from_numpy(unread)]
        parts = self._rows.read(draw, read)
        intact = self._checksums_of(draw, read, parts) == written[unread]
        self._verified[draw, read.numpy()] = intact
        if not intact.all():
            damaged = read.numpy()[~intact]
            self._damaged[draw, damaged] = True
            self._checksums[draw, damaged] = 0
            if self.writes:  # the next flush removes them from the file, unless they are written again before that
                self._changed_draws.add(draw)
        return parts if len(read) == len(rows) else ()

    def _checksums_of(self, draw: int, rows: Tensor, parts: Sequence[Tensor]) -> NDArray[np.uint32]:
        """Return the checksum of each row over all parts. It is never 0, which means that a row was not written."""
        # The position of the row is the start value, so that a row in the wrong position does not match.
        sums = [(draw * self.samples + row) % 2**32 for row in rows.tolist()]
        for part, values in zip(self.parts, parts, strict=True):
            content, size = bytes_of(values), part.bytes
            sums = [zlib.crc32(content[row * size : (row + 1) * size], value) for row, value in enumerate(sums)]
        return np.array(sums, dtype=np.uint32).clip(min=1)

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
