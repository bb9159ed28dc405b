"""What one teacher said of each draw of each sample: files that are read through memory maps and written row by row."""

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

META, IDS, KNOWN, USED = "meta.json", "ids", "known", "used"
_SECONDS = 5.0  # between two flushes at least
_PAUSES = 100  # for how many times as long as a flush took there is none, so that a slow disk does not hold up training


class Lookup(NamedTuple):
    """Where samples stand in a store: rows (samples,), and which are known in this draw, (samples,) bool; None: all."""

    draw: int
    rows: Tensor
    known: Tensor | None


class NewOutputs(NamedTuple):
    """What a teacher said of samples, (samples,) int64 ids, in one draw: a tensor (samples, ...) for each part."""

    draw: int
    ids: Tensor
    parts: tuple[Tensor, ...]


class Store:
    """A folder of answers, open. Its process writes where it holds the lock, and else only reads what others wrote.

    Rows are written to the files, never through the maps, so that a full disk is an error and not the end of the
    process. Which rows are known is kept in memory, and in a file from the next flush on, after their data have
    reached the disk: a process that is killed never leaves a row that is known without its data.
    """

    def __init__(self, path: Path, parts: Sequence[Part], samples: int, draws: int) -> None:
        self.path, self.parts, self.samples, self.draws = path, tuple(parts), samples, draws
        self._use = FileLock(path / "uses" / uuid.uuid4().hex)
        self._lock = FileLock(path / ".writing")
        self._use.acquire(timeout=0)
        self.ids = torch.from_file(str(path / IDS), shared=True, size=samples, dtype=torch.int64).clone()
        self._after = torch.cat([self.ids, self.ids[:1]])  # beyond the last is an id that is not beyond it
        self._maps = [_mapped(path, part, draws * samples).view(draws, samples, *part.shape) for part in parts]
        self._by_draw = list(zip(*(each.unbind(0) for each in self._maps), strict=True))
        self._fresh: list[tuple[int, Tensor]] = []
        self._files = [(path / name).open("r+b", buffering=0) for name in (*(part.name for part in parts), KNOWN)]
        self._flushed, self._pause = time.monotonic(), _SECONDS
        self.writes = False
        self.known = torch.zeros(draws, samples, dtype=torch.bool)
        self._whole: set[int] = set()
        self.look_again()

    def find(self, ids: Tensor, draw: int) -> Lookup | None:
        """Return where samples stand, (samples,) ids; None where the store has no place for them."""
        ids = ids.to("cpu", torch.int64).contiguous()
        rows = torch.searchsorted(self.ids, ids)
        if not 0 <= draw < self.draws or not torch.equal(self._after.index_select(0, rows), ids):
            return None
        if draw in self._whole:
            return Lookup(draw, rows, None)
        known = self.known[draw].index_select(0, rows)
        return Lookup(draw, rows, None if bool(known.all()) else known)

    def read(self, found: Lookup) -> tuple[Tensor, ...]:
        """Return the rows of each part, as copies; what is not known is 0."""
        return tuple([each.index_select(0, found.rows) for each in self._by_draw[found.draw]])

    def write(self, draw: int, rows: Tensor, parts: Sequence[Tensor]) -> None:
        """Record the parts of these rows. Raises OSError where the disk is full."""
        for file, part, values in zip(self._files, self.parts, parts, strict=False):
            content = values.reshape(len(rows), -1).view(torch.uint8).numpy()
            for row, each in zip(rows.tolist(), content, strict=True):
                file.seek((draw * self.samples + row) * part.bytes)
                if file.write(each) < part.bytes:
                    raise OSError(errno.ENOSPC, f"{self.path} has no room for a whole row")
        self.known[draw].index_fill_(0, rows, True)
        self._fresh.append((draw, rows))
        if time.monotonic() - self._flushed > self._pause:
            self.flush()

    def take(self, heard: NewOutputs) -> None:
        """Record what another process was told, where this one writes, but for what is known here already."""
        found = self.find(heard.ids, heard.draw) if self.writes else None
        if found is None or found.known is None:
            return
        new = found.known.logical_not().nonzero().flatten()
        if len(new):
            self.write(found.draw, found.rows[new], [each[new] for each in heard.parts])

    def flush(self) -> None:
        """Put what was recorded on the disk: first the data, then that they are known."""
        if not self._fresh:
            return
        began = time.monotonic()
        *data, known = self._files
        for file in data:
            os.fsync(file.fileno())
        for draw in {draw for draw, _ in self._fresh}:
            known.seek(draw * self.samples)
            known.write(self.known[draw].view(torch.uint8).numpy().tobytes())
        os.fsync(known.fileno())
        self._fresh = []
        self._flushed = time.monotonic()
        self._pause = max(_SECONDS, _PAUSES * (self._flushed - began))

    def look_again(self) -> None:
        """Where another process wrote so far, take up what it recorded, and the writing if it has ended."""
        if not self.writes:
            try:
                self._lock.acquire(timeout=0)
                self.writes = True
            except Timeout:
                pass
            self.known = self._read_known()  # after the lock, or what was recorded between the two would be missed
        self._whole = {draw for draw, known in enumerate(self.known.all(1).tolist()) if known}

    def abandon(self) -> None:
        """Let others write and delete, without what was recorded since the last flush."""
        self._fresh = []
        self.close()

    def close(self) -> None:
        """Flush, and let others write and delete."""
        try:
            self.flush()
        finally:
            for file in self._files:
                file.close()
            self._lock.release()
            self._use.release()
            with suppress(OSError):  # somebody may have deleted the folder
                Path(self._use.lock_file).unlink(missing_ok=True)
                (self.path / USED).touch()

    def _read_known(self) -> Tensor:
        file = self._files[-1]
        file.seek(0)
        content = bytearray(file.readall())
        return torch.frombuffer(content, dtype=torch.uint8).view(self.draws, self.samples).bool()


def _mapped(path: Path, part: Part, rows: int) -> Tensor:
    count = torch.Size(part.shape).numel() * rows
    return torch.from_file(str(path / part.name), shared=True, size=count, dtype=part.dtype)
