"""Signals of a store as a sequence of arrays, mapped from the file and not held in memory."""

import mmap
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.store.index import LEADS, LOCK, SAMPLE, SIGNALS, Rows, bytes_of, without

Signal = NDArray[np.float32]


class StoredSignals(Sequence[Signal]):
    """float32 (12, time) each, read-only views of the mapped file; a copy by pickle maps it again.

    The first time that a record is asked for, by this process or by one that it forked, its bytes are held against
    their sum: DataError where they are not those that were written.
    """

    def __init__(self, mapped: "Mapped", places: NDArray[np.int64] | None = None) -> None:
        self.mapped = mapped
        self.places = np.arange(len(mapped.rows)) if places is None else places

    def part(self, rows: NDArray[np.int64]) -> "StoredSignals":
        """Return these signals in this order, of the same mapped file."""
        return StoredSignals(self.mapped, self.places[rows])

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, row: int) -> Signal: ...
    @overload
    def __getitem__(self, row: slice) -> "StoredSignals": ...
    def __getitem__(self, row: int | slice) -> "Signal | StoredSignals":
        if isinstance(row, slice):
            return StoredSignals(self.mapped, self.places[row])
        return self.mapped.signal(int(self.places[row]))


class Mapped:
    """The file of signals of a store, and these rows of its index."""

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.folder = folder
        self.rows = rows
        self._first = (rows["offset"] // SAMPLE).astype(np.int64)
        self._time = rows["time"].astype(np.int64)
        end = int((rows["offset"] + bytes_of(rows["time"])).max(initial=0)) // SAMPLE
        self._samples = _mapped(folder / SIGNALS, end)
        # Shared with processes that are forked, so that a loader's workers need not each look again in each epoch.
        self._sound = np.frombuffer(mmap.mmap(-1, max(1, len(rows))), dtype=bool)

    def signal(self, place: int) -> Signal:
        """Return the signal of a row, float32 (12, time); DataError where its bytes are not those that were written."""
        if not self.is_sound(place):
            raise self._damaged(place)
        return self._view(place)

    def is_sound(self, place: int) -> bool:
        """Whether the bytes of a row are those that were written; reads them once."""
        if not self._sound[place]:
            self._sound[place] = zlib.crc32(self._view(place).data) == self.rows["sum"][place]
        return bool(self._sound[place])

    def __reduce__(self) -> tuple[Any, ...]:
        return Mapped, (self.folder, self.rows)

    def _view(self, place: int) -> Signal:
        first, time = self._first[place], self._time[place]
        return self._samples[first : first + LEADS * time].reshape(LEADS, time)

    def _damaged(self, place: int) -> DataError:
        try:
            with FileLock(self.folder / LOCK, timeout=1):
                without(self.folder, [self.rows["key"][place].tobytes()])
            cure = "it was taken out of the store, so run the same again, and it is prepared anew"
        except (OSError, Timeout):
            cure = "delete that folder, or ask for the data with store=None"
        return DataError(f"a record in {self.folder} is damaged, its bytes are not those that were written; {cure}")


def _mapped(file: Path, samples: int) -> Signal:
    if not samples:
        return np.zeros(0, np.float32)
    try:
        # As a plain array: to slice a memmap takes several times as long.
        return np.memmap(file, dtype="<f4", mode="r", shape=(samples,)).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}; was it deleted just now? Run the same again") from error
