"""Prepare the signal of a record for training: band-pass filter, resampling and scaling."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.filters import bandpass, rate_ratio, resample, resample_linear, zscore
from kdkit_ecg.records.header import Header
from kdkit_ecg.records.record import ChecksumError, WfdbRecord, missing_files, read_record

Resampling = Literal["polyphase", "linear"]
Scaling = Literal["zscore", "raw"]
Fault = Literal["signal", "rate", "checksum"]

VERSION = 3  # of the preparation; increase it if the same options give other samples (fingerprints and stores use it)


class PreparedSignal(NamedTuple):
    """The prepared signal of a record, or the fault that prevents one.

    content: 16-byte hash of the twelve leads as they were read; b"" if they cannot be read.
    signal: float32 (12, time); None if there is a fault.
    fault: "signal" if the signal cannot be read, "rate" if the band-pass or the resampling cannot handle its rate,
    "checksum" if the samples do not match the header.
    transient: the fault may disappear, e.g. if a file could not be opened or memory was short.
    """

    content: bytes
    signal: NDArray[np.float32] | None
    fault: Fault | None = None
    transient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Options of the preparation. rate in Hz. band: (low, high) in Hz, applied at the rate of the record, or None.

    resampling and scaling: see Challenge2020. Rate and band are converted to float, so that equal options always have
    the same name in the store.
    """

    rate: float
    band: tuple[float, float] | None
    resampling: Resampling
    scaling: Scaling

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", float(self.rate))
        object.__setattr__(self, "band", tuple(map(float, self.band)) if self.band else None)

    def prepare(self, header: Header) -> PreparedSignal:
        """Read and prepare a record. A record that cannot be prepared gives a fault and not an exception."""
        try:
            record = read_record(header)
        except (DataError, OSError, MemoryError) as error:
            transient = isinstance(error.__cause__ or error, OSError | MemoryError)
            # The files may have been deleted or replaced since the header was read.
            transient = transient or not header.path.is_file() or bool(missing_files(header))
            fault: Fault = "checksum" if isinstance(error, ChecksumError) else "signal"
            return PreparedSignal(b"", None, fault, transient)
        content = content_hash(record)
        if not np.isfinite(record.signal[: len(LEADS)]).all():
            return PreparedSignal(content, None, "signal")
        try:
            with np.errstate(divide="raise", over="raise", invalid="raise"):
                return PreparedSignal(content, self.transform(record))
        except MemoryError:
            return PreparedSignal(content, None, "rate", transient=True)
        except (DataError, ArithmeticError, ValueError):  # scipy's filters raise any of these for an extreme rate
            return PreparedSignal(content, None, "rate")

    def prepare_all(self, headers: Sequence[Header]) -> list[PreparedSignal]:
        """Prepare several records."""
        return [self.prepare(header) for header in headers]

    def transform(self, record: WfdbRecord) -> NDArray[np.float32]:
        """Return the prepared signal, (12, time). Raises DataError if band or resampling does not fit the rate."""
        signal: NDArray[np.floating[Any]] = record.signal[: len(LEADS)].astype(np.float64)
        # Filter before resampling: the band is relative to the true rate.
        if self.band:
            signal = bandpass(signal, record.rate, *self.band)
        change_rate = resample if self.resampling == "polyphase" else resample_linear
        signal = change_rate(signal, record.rate, self.rate)
        if not (signal.size and np.isfinite(signal).all()):
            raise DataError(
                f"no finite sample is left of a record at {record.rate:g} Hz after resampling to {self.rate:g} Hz"
            )
        return np.ascontiguousarray(zscore(signal) if self.scaling == "zscore" else signal, dtype=np.float32)

    def expected_samples(self, header: Header) -> int:
        """Return an upper estimate of the samples per lead after preparation, 0 if the rate is a fault.

        Reads no signal. A header may contain any number of samples, so the estimate is limited by the size of the
        signal files, at one bit per sample.
        """
        try:
            ratio = rate_ratio(header.rate, self.rate)
        except DataError:
            return 0
        if self.band and self.band[1] >= header.rate / 2:
            return 0
        bits = 8 * sum(header.path.with_name(name).stat().st_size for name in header.files)
        return int(min(header.samples, bits // len(header.leads)) * ratio) + 1


def content_hash(record: WfdbRecord) -> bytes:
    """Return a 16-byte hash that is equal for records with equal samples in the twelve leads."""
    return hashlib.blake2b(record.signal[: len(LEADS)].tobytes(), digest_size=16).digest()
