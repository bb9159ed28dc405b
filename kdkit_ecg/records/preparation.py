"""Prepare the signal of a record for training: band-pass filter, resampling and scaling."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit.errors import first_line
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.filters import bandpass, flat_leads, rate_ratio, resample, resample_linear, zscore
from kdkit_ecg.records.source import Record, RecordSource, Signal, missing_files, select_leads
from kdkit_ecg.records.wfdb_record import ChecksumError

Resampling = Literal["polyphase", "linear"]
Scaling = Literal["zscore", "raw"]
Fault = Literal["signal", "rate", "checksum", "flat"]  # stores depend on the order

VERSION = 6  # of the preparation; increase it if the same options give other samples (fingerprints and stores use it)
SHORTEST = 0.05  # share of a window that a record should fill; otherwise a network sees little but padding
_LARGE = 5_000_000  # numbers in a signal, such as twelve leads of 14 minutes at 500 Hz


class PreparedSignal(NamedTuple):
    """The prepared signal of a record, or the fault that prevents it.

    content: 16-byte hash of the selected leads as they were read; b"" if they cannot be read.
    signal: float32 (leads, time); None if there is a fault.
    fault: "signal" if the signal cannot be read, "rate" if the band-pass or the resampling cannot handle its rate,
    "checksum" if the samples do not match the header, "flat" if all selected leads are flat.
    transient: the fault may disappear, e.g. if a file could not be opened or memory was short.
    """

    content: bytes
    signal: NDArray[np.float32] | None
    fault: Fault | None = None
    transient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What a network receives from a record, whatever its rate, unit and order of leads.

    rate in Hz. band: (low, high) in Hz, applied at the rate of the record, or None. resampling and scaling: see
    Challenge2020. leads: in the order of the channels; limb leads that a record lacks are derived from two others.
    Rate and band are converted to float, so that equal options always have the same name in the store.
    """

    rate: float
    band: tuple[float, float] | None
    resampling: Resampling
    scaling: Scaling
    leads: tuple[str, ...] = LEADS

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", float(self.rate))
        object.__setattr__(self, "band", tuple(map(float, self.band)) if self.band else None)

    def prepare(self, source: RecordSource) -> PreparedSignal:
        """Read and prepare a record. A record that cannot be prepared gives a fault and not an exception."""
        try:
            record = source.read()
            signal = select_leads(record.signal, record.leads, self.leads)
        except (DataError, OSError, MemoryError) as error:
            transient = isinstance(error.__cause__ or error, OSError | MemoryError)
            # The files may have been deleted or replaced after the header was read.
            transient = transient or not source.path.is_file() or bool(missing_files(source))
            fault: Fault = "checksum" if isinstance(error, ChecksumError) else "signal"
            return PreparedSignal(b"", None, fault, transient)
        content = content_hash(signal)
        try:
            prepared = self._transform(signal, record.rate)
        except MemoryError:
            return PreparedSignal(content, None, "rate", transient=True)
        except DataError:
            return PreparedSignal(content, None, "rate" if np.isfinite(signal).all() else "signal")
        if flat_leads(prepared).all():
            return PreparedSignal(content, None, "flat")
        return PreparedSignal(content, prepared)

    def prepare_all(self, sources: Sequence[RecordSource]) -> list[PreparedSignal]:
        """Prepare several records."""
        return [self.prepare(source) for source in sources]

    def transform(self, record: Record) -> NDArray[np.float32]:
        """Return the prepared signal, (leads, time).

        Raises DataError if a lead is absent, a sample is not finite, or band or resampling does not fit the rate.
        """
        return self._transform(select_leads(record.signal, record.leads, self.leads), record.rate)

    def _transform(self, signal: Signal, rate: float) -> NDArray[np.float32]:
        if not np.isfinite(signal).all():
            raise DataError("it has samples that are infinite, or too large for a number")
        try:
            with np.errstate(divide="raise", over="raise", invalid="raise"):
                return self._filtered(signal, rate)
        except (ArithmeticError, ValueError) as error:  # scipy's filters raise any of these for an extreme rate
            raise DataError(f"it cannot be filtered or resampled at {rate:g} Hz: {first_line(error)}") from error

    def _filtered(self, signal: Signal, rate: float) -> NDArray[np.float32]:
        # No step mixes leads. Filtered lead by lead, a record of a day does not take six times its size in memory.
        if signal.size > _LARGE and len(signal) > 1:
            return np.concatenate([self._filtered(lead[None], rate) for lead in signal])
        signal = signal.astype(np.float64)
        # Filter before resampling: the band is relative to the true rate.
        if self.band:
            signal = bandpass(signal, rate, *self.band)
        change_rate = resample if self.resampling == "polyphase" else resample_linear
        signal = change_rate(signal, rate, self.rate)
        if not (signal.size and np.isfinite(signal).all()):
            raise DataError(f"no finite sample is left of a record at {rate:g} Hz after resampling to {self.rate:g} Hz")
        return np.ascontiguousarray(zscore(signal) if self.scaling == "zscore" else signal, dtype=np.float32)

    def expected_samples(self, source: RecordSource) -> int:
        """Return an upper estimate of the samples per lead after preparation, 0 if the rate is a fault.

        Reads no signal.
        """
        try:
            ratio = rate_ratio(source.rate, self.rate)
        except DataError:
            return 0
        if self.band and self.band[1] >= source.rate / 2:
            return 0
        return int(source.most_samples() * ratio) + 1


def content_hash(signal: Signal) -> bytes:
    """Return a 16-byte hash that is equal for equal samples, (leads, time)."""
    return hashlib.blake2b(np.ascontiguousarray(signal).tobytes(), digest_size=16).digest()
