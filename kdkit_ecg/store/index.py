"""Read and write the index of a store: a row of fixed size for each record, with the position of its signal."""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from kdkit.utils.files import is_file, write
from kdkit_ecg.records.preparation import Fault
from kdkit_ecg.records.source import MAX_CHANNELS

INDEX, SIGNALS, LOCK = "index.bin", "signals.f32", ".lock"

SAMPLE_BYTES = 4  # of a float32
FAULTS = ("", *get_args(Fault))  # a row has the position of its fault in this tuple

# key: hash of the source files. content: hash of the leads before preparation, which finds duplicate signals. offset:
# in bytes, into the file of signals. leads: their number. time: samples per lead. sum: CRC-32 of the signal. check:
# CRC-32 of the other fields of the row.
ROW = np.dtype(
    [
        ("key", "V16"),
        ("content", "V16"),
        ("offset", "<u8"),
        ("leads", "<u4"),
        ("time", "<u4"),
        ("sum", "<u4"),
        ("fault", "<u4"),
        ("check", "<u4"),
    ]
)

Rows = NDArray[np.void]


def make_row(key: bytes, content: bytes, offset: int, signal: NDArray[np.float32] | None, fault: str) -> bytes:
    """Return the bytes of a row in the index file."""
    leads, time = (0, 0) if signal is None else signal.shape
    total = 0 if signal is None else zlib.crc32(np.ascontiguousarray(signal, "<f4").data)
    row = np.array([(key, content, offset, leads, time, total, FAULTS.index(fault), 0)], dtype=ROW)
    row["check"] = _row_checksum(row.tobytes())
    return row.tobytes()


def read_rows(folder: Path) -> tuple[Rows, int]:
    """Return the valid rows of a store, the last one of each key, and the number of invalid rows in the file.

    A row is valid if its checksum is correct and its signal lies within the file of signals. A last row that was not
    written completely is invalid. A missing file has no rows.
    """
    try:
        raw = (folder / INDEX).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return np.zeros(0, ROW), 0
    size = (folder / SIGNALS).stat().st_size if is_file(folder / SIGNALS) else 0
    rows: Rows = np.frombuffer(raw[: len(raw) // ROW.itemsize * ROW.itemsize], dtype=ROW)
    starts = range(0, rows.nbytes, ROW.itemsize)
    intact = [
        _row_checksum(raw[start : start + ROW.itemsize]) == checksum
        for start, checksum in zip(starts, rows["check"].tolist(), strict=True)
    ]
    ends = rows["offset"] + signal_bytes(rows["leads"], rows["time"])
    # An offset near 2**64, or a size beyond it, would make `ends` start again at 0.
    valid = np.array(intact, dtype=bool) & (rows["offset"] <= size) & (ends <= size) & (rows["fault"] < len(FAULTS))
    valid &= rows["leads"] <= MAX_CHANNELS
    # Later rows replace earlier ones of the same key. The dict keeps the last position of each.
    last_rows = {key: row for row, key in enumerate(rows[valid]["key"].tolist())}
    return rows[valid][sorted(last_rows.values())], int((~valid).sum()) + bool(len(raw) % ROW.itemsize)


def write_rows(folder: Path, rows: Rows) -> None:
    """Replace the index atomically. The store must be locked."""
    write(folder / INDEX, rows.tobytes())


def remove_rows(folder: Path, keys: Iterable[bytes]) -> None:
    """Remove the records with these keys from the index, so that they are prepared again. The store must be locked."""
    removed = list(keys)
    rows = read_rows(folder)[0]
    write_rows(folder, rows[[key not in removed for key in rows["key"].tolist()]])


def signal_bytes(leads: Any, time: Any) -> Any:
    """Return the size in bytes of signals with this many leads, and samples per lead."""
    return np.asarray(leads, dtype=np.uint64) * np.asarray(time, dtype=np.uint64) * np.uint64(SAMPLE_BYTES)


def _row_checksum(row: bytes) -> int:
    return zlib.crc32(row[: ROW.fields["check"][1]])  # type: ignore[index]  # fields is not None: ROW is structured
