"""The open files of one cache entry: read through memory maps, and written row by row."""

import errno
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kdkit.teachers.cache.codec import Part

META, IDS, WRITTEN, USED = "meta.json", "ids", "written", "used"  # the files of an entry besides its parts
_FLUSH_SECONDS = 5.0  # the least time between two flushes
_FLUSH_RATIO = (
    100  # the pause after a flush, as a multiple of its duration, so that a slow disk does not delay training
)


class Lookup(NamedTuple):
    """The rows of samples in a store, (samples,), and which of them are hits, (samples,) bool; None: all of them."""

    draw: int
    rows: Tensor
    hits: Tensor | None


class NewOutputs(NamedTuple):
    """Outputs for samples, (samples,) int64 ids, in one draw: a tensor (samples, ...) for each part."""

    draw: int
    ids: Tensor
    parts: tuple[Tensor, ...]


class Store:
    """An entry of the cache that is open. The process that holds its lock writes; others read what was flushed.

    Rows are written to the files, never through the maps, so that a full disk raises OSError instead of killing the
    process. The flags of written rows are in memory, and reach their file when the rows themselves are on the disk:
    a process that is killed never leaves a flag without its row.
    """

    def __init__(self, path: Path, parts: Sequence[Part], samples: int, draws: int) -> None:
        self.path, self.parts, self.samples, self.draws = path, tuple(parts), samples, draws
        self._use = FileLock(path / "uses" / uuid.uuid4().hex)  # while it is held, the entry is not deleted
        self._lock = FileLock(path / ".writing")
        self._use.acquire(timeout=0)
        self.ids = torch.from_file(str(path / IDS), shared=True, size=samples, dtype=torch.int64).clone()
        # For an id beyond the last, searchsorted returns `samples`: the comparison in `lookup` then meets another id.
        self._ids_or_first = torch.cat([self.ids, self.ids[:1]])
        maps = []
        for part in parts:
            count = torch.Size(part.shape).numel() * draws * samples
            mapped = torch.from_file(str(path / part.name), shared=True, size=count, dtype=part.dtype)
            maps.append(mapped.view(draws, samples, *part.shape))
        self._parts_of_draw = list(zip(*(mapped.unbind(0) for mapped in maps), strict=True))
        self._unflushed: list[tuple[int, Tensor]] = []
        # Unbuffered: readers of the maps see rows at once.
        self._files = [(path / name).open("r+b", buffering=0) for name in (*(part.name for part in parts), WRITTEN)]
        self._flushed, self._pause = time.monotonic(), _FLUSH_SECONDS
        self.writes = False  # whether this process holds the lock
        self.written = torch.zeros(draws, samples, dtype=torch.bool)
        self._complete_draws: set[int] = set()
        self.refresh()

    def lookup(self, ids: Tensor, draw: int) -> Lookup | None:
        """Return the rows of samples, (samples,) ids; None if the entry has no rows for one of them."""
        ids = ids.to("cpu", torch.int64).contiguous()
        rows = torch.searchsorted(self.ids, ids)
        if not 0 <= draw < self.draws or not torch.equal(self._ids_or_first.index_select(0, rows), ids):
            return None
        if draw in self._complete_draws:
            return Lookup(draw, rows, None)
        hits = self.written[draw].index_select(0, rows)
        return Lookup(draw, rows, None if bool(hits.all()) else hits)

    def read(self, lookup: Lookup) -> tuple[Tensor, ...]:
        """Return the rows of each part, as copies; rows that were not written are 0."""
        return tuple([mapped.index_select(0, lookup.rows) for mapped in self._parts_of_draw[lookup.draw]])

    def write(self, draw: int, rows: Tensor, parts: Sequence[Tensor]) -> None:
        """Write the parts of these rows. Raises OSError if the disk is full."""
        for file, part, values in zip(self._files, self.parts, parts, strict=False):
            content = values.reshape(len(rows), -1).view(torch.uint8).numpy()  # (rows, bytes)
            for row, row_bytes in zip(rows.tolist(), content, strict=True):
                file.seek((draw * self.samples + row) * part.bytes)
                if file.write(row_bytes) < part.bytes:  # a raw file may write less than it got, without an error
                    raise OSError(errno.ENOSPC, f"{self.path} has no room for a whole row")
        self.written[draw].index_fill_(0, rows, True)
        self._unflushed.append((draw, rows))
        if time.monotonic() - self._flushed > self._pause:
            self.flush()

    def merge(self, new: NewOutputs) -> None:
        """Write the outputs of another process of the run, except for rows that are written already."""
        lookup = self.lookup(new.ids, new.draw) if self.writes else None
        if lookup is None or lookup.hits is None:
            return
        missing = lookup.hits.logical_not().nonzero().flatten()
        if len(missing):
            self.write(lookup.draw, lookup.rows[missing], [part[missing] for part in new.parts])

    def flush(self) -> None:
        """Force written rows to the disk, and then their flags."""
        if not self._unflushed:
            return
        began = time.monotonic()
        *data, flags = self._files
        for file in data:
            os.fsync(file.fileno())
        for draw in {draw for draw, _ in self._unflushed}:
            flags.seek(draw * self.samples)
            flags.write(self.written[draw].view(torch.uint8).numpy().tobytes())
        os.fsync(flags.fileno())
        self._unflushed = []
        self._flushed = time.monotonic()
        self._pause = max(_FLUSH_SECONDS, _FLUSH_RATIO * (self._flushed - began))

    def refresh(self) -> None:
        """Read the rows that another process flushed, and take over the writing if it has ended."""
        if not self.writes:
            try:
                self._lock.acquire(timeout=0)
                self.writes = True
            except Timeout:
                pass
            self.written = self._read_flags()  # after the lock: rows that are flushed in between would be missed
        self._complete_draws = {draw for draw, complete in enumerate(self.written.all(1).tolist()) if complete}

    def abandon(self) -> None:
        """Close without the rows that were written since the last flush."""
        self._unflushed = []
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

    def _read_flags(self) -> Tensor:
        file = self._files[-1]
        file.seek(0)
        content = bytearray(file.readall())
        return torch.frombuffer(content, dtype=torch.uint8).view(self.draws, self.samples).bool()
