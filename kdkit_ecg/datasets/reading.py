"""Read the signals of records, each signal once."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.datasets.leftout import LeftOut, Reason
from kdkit_ecg.headers import Header
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records import Record, read_record


def read_signals(
    headers: Sequence[Header], shaped: Callable[[Record], NDArray[np.float32]], left: LeftOut
) -> dict[Header, NDArray[np.float32]]:
    """Return the shaped signals of the records, and note in `left` which cannot be read.

    Of records with the same twelve leads, sample by sample, the first by name is kept: A0101 and Q0048 of the
    Challenge are one signal with two lists of codes.
    """
    signals: dict[Header, NDArray[np.float32]] = {}
    seen: set[bytes] = set()
    for header in headers:
        try:
            record = read_record(header)
        except DataError:
            left.add(Reason.SIGNAL, header.path)
            continue
        content = _content(record)
        if content in seen:
            left.add(Reason.TWIN, header.path)
            continue
        seen.add(content)
        try:
            signals[header] = shaped(record)
        except DataError:
            left.add(Reason.RATE, header.path)
    return signals


def twins(headers: Sequence[Header]) -> list[list[str]]:
    """Return the names of records that have one signal, in lists of two or more.

    Only records whose headers give the same length, first samples and checksums are read and compared.
    """
    alike: dict[object, list[Header]] = defaultdict(list)
    for header in headers:
        checks = sorted(zip(header.leads, header.checks, strict=True))
        alike[header.rate, header.samples, tuple(checks)].append(header)
    found: dict[bytes, list[str]] = defaultdict(list)
    for header in [header for several in alike.values() if len(several) > 1 for header in several]:
        try:
            found[_content(read_record(header))].append(header.name)
        except DataError:
            continue  # it will be left out when its signal is read
    return [names for names in found.values() if len(names) > 1]


def _content(record: Record) -> bytes:
    return hashlib.blake2b(record.signal[: len(LEADS)].tobytes(), digest_size=16).digest()
