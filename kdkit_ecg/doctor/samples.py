"""Read the samples of a record as its converter wrote them, and what its header says of them."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.records.header import Header

Samples = NDArray[np.int64]

# The value that marks a sample as invalid, by WFDB format; other formats have none.
INVALID = {"16": -(1 << 15), "61": -(1 << 15), "24": -(1 << 23), "32": -(1 << 31), "212": -(1 << 11), "80": -(1 << 7)}

_SIGNAL = re.compile(r"(\S+)\s+(\d+)(?:x\d+)?(?::\d+)?(?:\+(\d+))?\s+\S+\s+\d+\s+-?\d+\s+-?\d+\s+(-?\d+)\s")


@dataclass(frozen=True, slots=True)
class Stored:
    """How a lead is stored: its file, WFDB format, bytes before the first sample, and checksum."""

    file: str
    format: str
    offset: int
    checksum: int


def stored(header: Header) -> list[Stored]:
    """Return how each lead is stored, in the file's order; the header is one that read_header takes."""
    lines = [line.strip() for line in header.path.read_bytes().decode("latin-1").splitlines() if line.strip()]
    signals = [line for line in lines if not line.startswith("#")][1:]
    found = [match for match in map(_SIGNAL.match, signals) if match]
    return [Stored(match[1], match[2], int(match[3] or 0), int(match[4])) for match in found]


def read_samples(header: Header) -> Samples:
    """Return (leads, time) in steps of the converter, leads in the file's order. Raises DataError."""
    import wfdb  # half a second with pandas, which a folder of unreadable headers need not wait for

    try:
        with tempfile.TemporaryDirectory() as folder:
            read = wfdb.rdrecord(str(_readable(header, Path(folder)).with_suffix("")), physical=False).d_signal
    except Exception as error:  # wfdb raises whatever its arithmetic meets in a damaged file
        raise DataError(str(error) or type(error).__name__) from error
    if read.shape != (header.samples, len(header.leads)):
        raise DataError(
            f"{read.shape[0]} samples of {read.shape[1]} leads, not {header.samples} of {len(header.leads)}"
        )
    samples: Samples = read.T.astype(np.int64)
    return samples


def _readable(header: Header, folder: Path) -> Path:
    """Return a header that wfdb takes: it refuses record names with a suffix, "E07500.mat", and is shown a copy."""
    raw = header.path.read_bytes()
    line = next(line for line in raw.splitlines() if line.strip() and not line.lstrip().startswith(b"#"))
    if b"." not in line.split()[0]:
        return header.path
    mended = folder / header.path.name
    mended.write_bytes(raw.replace(line, line.replace(line.split()[0], header.name.encode(), 1), 1))
    for file in header.files:
        copyfile(header.path.with_name(file), mended.with_name(file))
    return mended
