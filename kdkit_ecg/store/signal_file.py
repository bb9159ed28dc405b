"""Read the signals of a store from its file, record by record, and compare them with their checksums."""

import mmap
import os
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from kdkit import DataError
from kdkit.errors import first_line
from kdkit.utils.locks import FileLock
from kdkit.utils.positioned import read_into
from kdkit_ecg.store.index import LOCK, SAMPLE_BYTES, SIGNALS, Rows, remove_rows, signal_bytes

Signal = NDArray[np.float32]

_BLOCK_WORDS = 1024  # of 8 bytes, with one sum in memory: a thousandth of the signals
_BLOCK_BYTES = 8 * _BLOCK_WORDS
_PART_OF_RECORD = 4  # a window that is less than this fraction of a record is read without the rest of it


class StoredSignals(Sequence[Signal]):
    """Signals of a store, float32 (leads, time) each, read from its file on each access, as read-only arrays.

    Pickling stores the path, not the samples; the copy opens the file again. Raises DataError if a signal does not
    match its checksum, see `SignalFile`.
    """

    def __init__(self, file: "SignalFile", rows: NDArray[np.int64] | None = None) -> None:
        self.file = file
        self.rows = np.arange(len(file.rows)) if rows is None else rows  # (records,) positions in file.rows

    def select(self, records: NDArray[np.int64]) -> "StoredSignals":
        """Return these signals in this order, from the same open file."""
        return StoredSignals(self.file, self.rows[records])

    def shape(self, record: int) -> tuple[int, int]:
        """Return the shape of a signal, (leads, time), without reading it."""
        return self.file.shape(int(self.rows[record]))

    def window(self, record: int, start: int, stop: int) -> Signal:
        """Return the samples from `start` to `stop` of all leads, float32 (leads, stop - start)."""
        return self.file.window(int(self.rows[record]), start, stop)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, record: int) -> Signal: ...
    @overload
    def __getitem__(self, record: slice) -> "StoredSignals": ...
    def __getitem__(self, record: int | slice) -> "Signal | StoredSignals":
        if isinstance(record, slice):
            return StoredSignals(self.file, self.rows[record])
        return self.file.signal(int(self.rows[record]))


class SignalFile:
    """The open file of signals of a store, and rows of its index. names: of the records, for error messages.

    The CRC-32 of a signal is compared on its first access, once for this process and the processes forked from it. From
    then on, the sums of its blocks are held in memory and compared on each access, because they cost ten times less.
    The file is never mapped: a process that reads a mapped page is killed by SIGBUS if the file was truncated.
    """

    def __init__(self, folder: Path, rows: Rows, names: Sequence[str] | None = None) -> None:
        self.folder, self.rows, self.names = folder, rows, names
        self._offsets, self._leads, self._times = (rows[field].tolist() for field in ("offset", "leads", "time"))
        blocks = -(-signal_bytes(rows["leads"], rows["time"]).astype(np.int64) // _BLOCK_BYTES)
        ends = np.cumsum(blocks)
        self._first_blocks = (ends - blocks).tolist()
        # Anonymous shared memory: the workers of a DataLoader are forked in every epoch, and should not verify again.
        self._verified = np.frombuffer(mmap.mmap(-1, max(1, len(rows))), dtype=bool)
        self._sums = np.frombuffer(mmap.mmap(-1, max(8, 8 * int(blocks.sum()))), dtype=np.uint64)
        try:
            # A store of only records with faults has no file of signals.
            self._descriptor = os.open(folder / SIGNALS, os.O_RDONLY | getattr(os, "O_BINARY", 0)) if ends.any() else -1
        except OSError as error:
            reason = "it may have been deleted just now, so run the same command again"
            raise DataError(f"{folder / SIGNALS} cannot be read: {first_line(error)}; {reason}") from error
        if self._descriptor >= 0:
            weakref.finalize(self, os.close, self._descriptor)

    def shape(self, row: int) -> tuple[int, int]:
        """Return the shape of the signal of a row, (leads, time)."""
        return self._leads[row], self._times[row]

    def signal(self, row: int) -> Signal:
        """Return the signal of a row, float32 (leads, time). Raises DataError if it is damaged."""
        samples = np.empty(self.shape(row), np.float32)
        if not self._read(row, samples):
            raise self._damage_error(row)
        samples.flags.writeable = False  # a change would be lost at the next access
        return samples

    def window(self, row: int, start: int, stop: int) -> Signal:
        """Return the samples from `start` to `stop` of a row, float32 (leads, stop - start).

        The first access reads all of a record. Later, only the blocks of the window are read and compared if the record
        is long.
        """
        if not self._verified[row] or (stop - start) * _PART_OF_RECORD > self._times[row]:
            return self.signal(row)[:, start:stop]
        samples = np.empty((self._leads[row], stop - start), np.float32)
        for lead, part in enumerate(samples):
            if not self._read_part(row, lead * self._times[row] + start, part):
                raise self._damage_error(row)
        samples.flags.writeable = False
        return samples

    def is_intact(self, row: int) -> bool:
        """Return whether the bytes of a signal match its checksum."""
        return self._read(row, np.empty(self.shape(row), np.float32))

    def __reduce__(self) -> tuple[Any, ...]:
        return SignalFile, (self.folder, self.rows, self.names)

    def _read(self, row: int, samples: Signal) -> bool:
        """Read the signal of a row, and return whether it is complete and intact."""
        content = samples.reshape(-1)
        if not self._read_bytes(row, self._offsets[row], content.view(np.uint8)):
            return False
        sums, first = _sums_of_blocks(content.view(np.uint8)), self._first_blocks[row]
        if self._verified[row]:
            return bool((sums == self._sums[first : first + len(sums)]).all())
        if zlib.crc32(content.data) != self.rows["sum"][row]:
            return False
        self._sums[first : first + len(sums)] = sums
        self._verified[row] = True
        return True

    def _read_part(self, row: int, start: int, samples: Signal) -> bool:
        """Read samples of a row from sample `start` of its (leads * time), and return whether they are intact."""
        record_bytes = self._leads[row] * SAMPLE_BYTES * self._times[row]
        begin, end = start * SAMPLE_BYTES, start * SAMPLE_BYTES + samples.nbytes
        first, last = begin // _BLOCK_BYTES, -(-end // _BLOCK_BYTES)  # the blocks that contain the samples
        content = np.empty(min(last * _BLOCK_BYTES, record_bytes) - first * _BLOCK_BYTES, np.uint8)
        if not self._read_bytes(row, self._offsets[row] + first * _BLOCK_BYTES, content):
            return False
        expected = self._sums[self._first_blocks[row] + first : self._first_blocks[row] + last]
        if not (_sums_of_blocks(content) == expected).all():
            return False
        samples.view(np.uint8)[:] = content[begin - first * _BLOCK_BYTES : end - first * _BLOCK_BYTES]
        return True

    def _read_bytes(self, row: int, offset: int, content: NDArray[np.uint8]) -> bool:
        """Read bytes of the file, and return whether it has all of them. Raises DataError if it cannot be read."""
        if not len(content):  # a record with a fault
            return True
        try:
            return read_into(self._descriptor, content.data, offset) == len(content)
        except OSError as error:
            raise DataError(
                f"{self._name(row)} in {self.folder / SIGNALS} cannot be read: {first_line(error)}; check the disk, or "
                "delete that folder, so that its records are prepared again"
            ) from error

    def _damage_error(self, row: int) -> DataError:
        """Remove a damaged record from the store if possible, and return the error to raise."""
        try:
            with FileLock(self.folder / LOCK, timeout=1):
                remove_rows(self.folder, [self.rows["key"][row].tobytes()])
            advice = "it was removed from the store, so run the same command again to prepare it again"
        except (OSError, Timeout):
            advice = "delete that folder, so that its records are prepared again, or use store=None"
        return DataError(
            f"{self._name(row)} in {self.folder / SIGNALS} is damaged, its bytes do not match their checksum or the "
            f"file was truncated; {advice}"
        )

    def _name(self, row: int) -> str:
        return "a record" if self.names is None else f"record {self.names[row]!r}"


def _sums_of_blocks(content: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the sum of the words of each block, modulo 2**64: any change of one word changes it."""
    whole = len(content) // 8 * 8
    words, rest = content[:whole].view(np.uint64), content[whole:]
    sums: NDArray[np.uint64] = np.add.reduceat(words, np.arange(0, len(words), _BLOCK_WORDS))
    if len(rest):  # a sample is half a word, and their number may be odd
        last = rest.view(np.uint32).astype(np.uint64)
        sums = np.append(sums, last) if whole % _BLOCK_BYTES == 0 else np.append(sums[:-1], sums[-1:] + last)
    return sums
