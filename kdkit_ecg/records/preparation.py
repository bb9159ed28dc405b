"""Make of a record the signal that is learned from: band, rate and scale."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.filters import bandpass, ratio_of, resample, resample_linear, zscore
from kdkit_ecg.records.header import Header
from kdkit_ecg.records.record import Record, missing_files, read_record

Resampling = Literal["polyphase", "linear"]
Scaling = Literal["zscore", "raw"]
Fault = Literal["signal", "rate"]

VERSION = 2  # part of the fingerprint and of a store's name: it goes up when the same options make other samples


class TrialResult(NamedTuple):
    """What came of preparing a record, whatever it was.

    content: 16 bytes, the same for records with the same twelve leads; b"" where they cannot be read.
    signal: float32 (12, time); None where there is a fault: "signal" that cannot be read, "rate" that the band or the
    resampling cannot take.
    passing: the fault may be gone another time, as when a file may not be opened or memory is short.
    """

    content: bytes
    signal: NDArray[np.float32] | None
    fault: Fault | None = None
    passing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """rate in Hz. band: (low, high) in Hz, applied at the record's own rate, or None. Others as Challenge2020.

    Rate and band are held as floats, however they came, so that what is prepared in one way has one name.
    """

    rate: float
    band: tuple[float, float] | None
    resampling: Resampling
    scaling: Scaling

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", float(self.rate))
        object.__setattr__(self, "band", tuple(map(float, self.band)) if self.band else None)

    def prepare(self, header: Header) -> TrialResult:
        """Read a record and prepare it; raises nothing for whatever is wrong with it."""
        try:
            record = read_record(header)
        except (DataError, OSError, MemoryError) as error:
            passing = isinstance(error.__cause__ or error, OSError | MemoryError)
            passing = passing or not header.path.is_file() or bool(missing_files(header))
            return TrialResult(b"", None, "signal", passing)
        content = content_of(record)
        if not np.isfinite(record.signal[: len(LEADS)]).all():
            return TrialResult(content, None, "signal")
        try:
            with np.errstate(divide="raise", over="raise", invalid="raise"):
                return TrialResult(content, self.shaped(record))
        except MemoryError:
            return TrialResult(content, None, "rate", passing=True)
        except (DataError, ArithmeticError, ValueError):  # scipy's filters raise what their arithmetic meets
            return TrialResult(content, None, "rate")

    def prepare_all(self, headers: Sequence[Header]) -> list[TrialResult]:
        """Prepare some records."""
        return [self.prepare(header) for header in headers]

    def shaped(self, record: Record) -> NDArray[np.float32]:
        """Return the signal, (12, time); raises DataError where band or resampling does not fit its rate."""
        signal: NDArray[np.floating[Any]] = record.signal[: len(LEADS)].astype(np.float64)
        if self.band:
            signal = bandpass(signal, record.rate, *self.band)
        change = resample if self.resampling == "polyphase" else resample_linear
        signal = change(signal, record.rate, self.rate)
        if not (signal.size and np.isfinite(signal).all()):
            raise DataError(f"nothing of use is left of a record at {record.rate:g} Hz when it is at {self.rate:g} Hz")
        return np.ascontiguousarray(zscore(signal) if self.scaling == "zscore" else signal, dtype=np.float32)

    def expected_time(self, header: Header) -> int:
        """Return about how many samples a lead will have; 0 where the rate is a fault. Reads no signal.

        A header may promise anything, so more than a bit a sample is not believed of its files.
        """
        try:
            ratio = ratio_of(header.rate, self.rate)
        except DataError:
            return 0
        if self.band and self.band[1] >= header.rate / 2:
            return 0
        bits = 8 * sum(header.path.with_name(name).stat().st_size for name in header.files)
        return int(min(header.samples, bits // len(header.leads)) * ratio) + 1


def content_of(record: Record) -> bytes:
    """Return 16 bytes that are the same for records with the same twelve leads, sample by sample."""
    return hashlib.blake2b(record.signal[: len(LEADS)].tobytes(), digest_size=16).digest()
