"""Read the samples of a record in converter steps, and how its header describes their storage."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.records.header import Header
from kdkit_ecg.records.record import wfdb_readable

Samples = NDArray[np.int64]

# The value of an invalid sample in each WFDB format. Other formats have none.
INVALID = {"16": -(1 << 15), "61": -(1 << 15), "24": -(1 << 23), "32": -(1 << 31), "212": -(1 << 11), "80": -(1 << 7)}

# file, format, (samples per frame, skew), byte offset, gain, bits, zero, first sample, checksum
_SIGNAL_LINE = re.compile(r"(\S+)\s+(\d+)(?:x\d+)?(?::\d+)?(?:\+(\d+))?\s+\S+\s+\d+\s+-?\d+\s+-?\d+\s+(-?\d+)\s")


@dataclass(frozen=True, slots=True)
class LeadFormat:
    """How a lead is stored: file, WFDB format, bytes before the first sample, and checksum."""

    file: str
    format: str
    offset: int
    checksum: int


def lead_formats(header: Header) -> list[LeadFormat]:
    """Return how each lead is stored, in the order of the file. The header must be valid for read_header."""
    lines = [line.strip() for line in header.path.read_bytes().decode("latin-1").splitlines() if line.strip()]
    signal_lines = [line for line in lines if not line.startswith("#")][1:]
    matches = [match for match in map(_SIGNAL_LINE.match, signal_lines) if match]
    return [LeadFormat(match[1], match[2], int(match[3] or 0), int(match[4])) for match in matches]


def read_samples(header: Header) -> Samples:
    """Return (leads, time) in converter steps, leads in the order of the file. Raises DataError."""
    import wfdb  # takes half a second with pandas, which a folder without readable headers avoids

    try:
        with wfdb_readable(header) as path:
            samples = wfdb.rdrecord(path, physical=False).d_signal  # (time, leads)
    except Exception as error:  # wfdb raises exceptions of any kind for a damaged file
        raise DataError(str(error) or type(error).__name__) from error
    if samples.shape != (header.samples, len(header.leads)):
        raise DataError(
            f"{samples.shape[0]} samples of {samples.shape[1]} leads, not {header.samples} of {len(header.leads)}"
        )
    steps: Samples = samples.T.astype(np.int64)
    return steps
