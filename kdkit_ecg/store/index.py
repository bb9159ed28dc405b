"""The index of a store: which record lies where among the signals, a row of fixed size for each."""

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

INDEX, SIGNALS, LOCK = "index.bin", "signals.f32", ".lock"

LEADS = 12
SAMPLE = 4  # bytes of a float32
FAULTS = ("", "signal", "rate")  # what a row's fault means, by number

# key: of the source files. content: of the twelve leads as they were read, by which twins are known. offset: bytes into
# the signals. time: samples per lead. sum: CRC-32 of the record's bytes. check: CRC-32 of the row before it.
ROW = np.dtype(
    [
        ("key", "V16"),
        ("content", "V16"),
        ("offset", "<u8"),
        ("time", "<u4"),
        ("sum", "<u4"),
        ("fault", "<u4"),
        ("check", "<u4"),
    ]
)

Rows = NDArray[np.void]


def row_of(key: bytes, content: bytes, offset: int, signal: NDArray[np.float32] | None, fault: str) -> bytes:
    """Return a row as it stands in the file."""
    time, total = (0, 0) if signal is None else (signal.shape[1], zlib.crc32(np.ascontiguousarray(signal, "<f4").data))
    row = np.array([(key, content, offset, time, total, FAULTS.index(fault), 0)], dtype=ROW)
    row["check"] = _check(row.tobytes())
    return row.tobytes()


def read_rows(folder: Path) -> tuple[Rows, int]:
    """Return the good rows of a store, the last one of each key, and how many rows of the file are not good.

    Good is a row that is whole and whose signal lies within the file of signals. A last row that is not whole yet is
    none. No file is no rows.
    """
    try:
        raw = (folder / INDEX).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return np.zeros(0, ROW), 0
    size = (folder / SIGNALS).stat().st_size if (folder / SIGNALS).is_file() else 0
    rows: Rows = np.frombuffer(raw[: len(raw) // ROW.itemsize * ROW.itemsize], dtype=ROW)
    whole = [_check(raw[at : at + ROW.itemsize]) == row for at, row in _checks(rows)]
    ends = rows["offset"] + bytes_of(rows["time"])
    fit = np.array(whole, dtype=bool) & (ends <= size) & (rows["fault"] < len(FAULTS))
    return _last(rows[fit]), int((~fit).sum()) + bool(len(raw) % ROW.itemsize)


def write_rows(folder: Path, rows: Rows) -> None:
    """Write the index anew, whole or not at all."""
    new = folder / f".{INDEX}.new"
    with new.open("wb") as file:
        file.write(rows.tobytes())
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / INDEX)


def without(folder: Path, keys: Iterable[bytes]) -> None:
    """Take the records with these keys out of the index, so that they are prepared anew; it must be locked."""
    gone = list(keys)
    rows = read_rows(folder)[0]
    write_rows(folder, rows[[key not in gone for key in rows["key"].tolist()]])


def bytes_of(time: Any) -> Any:
    """Return how many bytes a signal of this many samples per lead takes."""
    return np.asarray(time, dtype=np.uint64) * np.uint64(LEADS * SAMPLE)


def _checks(rows: Rows) -> Iterable[tuple[int, int]]:
    return zip(range(0, rows.nbytes, ROW.itemsize), rows["check"].tolist(), strict=True)


def _check(row: bytes) -> int:
    return zlib.crc32(row[: ROW.fields["check"][1]])  # type: ignore[index]  # it has fields


def _last(rows: Rows) -> Rows:
    places = {key: place for place, key in enumerate(rows["key"].tolist())}
    return rows[sorted(places.values())]
