"""Read the signals of a store as arrays that are mapped from the file and not held in memory."""

import mmap
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.store.index import LEADS, LOCK, SAMPLE_BYTES, SIGNALS, Rows, remove_rows, signal_bytes

Signal = NDArray[np.float32]


class MappedSignals(Sequence[Signal]):
    """Signals of a store, float32 (12, time) each, as read-only views of the mapped file.

    Pickling stores the path and not the samples; the copy maps the file again. The checksum of a signal is verified on
    its first access, once for this process and the processes forked from it. Raises DataError if it does not match.
    """

    def __init__(self, file: "SignalFile", rows: NDArray[np.int64] | None = None) -> None:
        self.file = file
        self.rows = np.arange(len(file.rows)) if rows is None else rows  # (records,) positions in file.rows

    def select(self, records: NDArray[np.int64]) -> "MappedSignals":
        """Return these signals in this order, from the same mapped file."""
        return MappedSignals(self.file, self.rows[records])

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, record: int) -> Signal: ...
    @overload
    def __getitem__(self, record: slice) -> "MappedSignals": ...
    def __getitem__(self, record: int | slice) -> "Signal | MappedSignals":
        if isinstance(record, slice):
            return MappedSignals(self.file, self.rows[record])
        return self.file.signal(int(self.rows[record]))


class SignalFile:
    """The mapped signal file of a store, and rows of its index."""

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.folder = folder
        self.rows = rows
        self._starts = (rows["offset"] // SAMPLE_BYTES).astype(np.int64)
        self._times = rows["time"].astype(np.int64)
        end = int((rows["offset"] + signal_bytes(rows["time"])).max(initial=0)) // SAMPLE_BYTES
        self._samples = _map_samples(folder / SIGNALS, end)
        # Anonymous shared memory: the workers of a DataLoader are forked in every epoch, and must not verify again.
        self._verified = np.frombuffer(mmap.mmap(-1, max(1, len(rows))), dtype=bool)

    def signal(self, row: int) -> Signal:
        """Return the signal of a row, float32 (12, time). Raises DataError if its checksum does not match."""
        if not self.is_intact(row):
            raise self._damage_error(row)
        return self._view(row)

    def is_intact(self, row: int) -> bool:
        """Return whether the bytes of a signal match its checksum. They are read once."""
        if not self._verified[row]:
            self._verified[row] = zlib.crc32(self._view(row).data) == self.rows["sum"][row]
        return bool(self._verified[row])

    def __reduce__(self) -> tuple[Any, ...]:
        return SignalFile, (self.folder, self.rows)

    def _view(self, row: int) -> Signal:
        start, time = self._starts[row], self._times[row]
        return self._samples[start : start + LEADS * time].reshape(LEADS, time)

    def _damage_error(self, row: int) -> DataError:
        """Remove a damaged record from the store if possible, and return the error to raise."""
        try:
            with FileLock(self.folder / LOCK, timeout=1):
                remove_rows(self.folder, [self.rows["key"][row].tobytes()])
            advice = "it was removed from the store, so run the same command again to prepare it again"
        except (OSError, Timeout):
            advice = "delete that folder, or use store=None"
        return DataError(f"a record in {self.folder} is damaged, its bytes do not match their checksum; {advice}")


def _map_samples(file: Path, samples: int) -> Signal:
    if not samples:  # an empty file cannot be mapped
        return np.zeros(0, np.float32)
    try:
        # As a plain array: slicing a memmap takes several times as long.
        return np.memmap(file, dtype="<f4", mode="r", shape=(samples,)).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read: {error}; it may have been deleted just now, so run the same command again"
        ) from error
