"""Records in files that are parsed as a whole (DICOM and XML), and the choice of the waveform with the leads."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit.errors import first_line
from kdkit_ecg.leads import LEADS
from kdkit_ecg.person import Sex
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.utils.messages import clipped, shown
from kdkit_ecg.utils.record_files import require_regular_file, without_suffix


class Channel(NamedTuple):
    """A lead of a waveform, by its standard name, as the file stores it.

    steps: (time,), integers or real numbers. factor: mV per step. origin: mV at step 0. invalid: the step that marks
    invalid samples, None if there is none.
    """

    lead: str
    steps: NDArray[Any]
    factor: float
    origin: float = 0.0
    invalid: Any = None

    def values(self) -> NDArray[np.float64]:
        """Return the samples in mV, (time,), NaN if invalid."""
        values: NDArray[np.float64] = self.steps.astype(np.float64) * self.factor + self.origin
        if self.invalid is not None:
            values[self.steps == self.invalid] = np.nan
        return values


class Waveform(NamedTuple):
    """Leads that were recorded at the same time. start: as the file writes it. rate in Hz. samples: per lead."""

    start: str
    rate: float
    samples: int
    channels: tuple[Channel, ...]

    @property
    def leads(self) -> tuple[str, ...]:
        """The names of the leads, in the order of the file."""
        return tuple(channel.lead for channel in self.channels)


class EcgFile(NamedTuple):
    """The content of a file: its waveforms as they were recorded, age in years, and sex."""

    waveforms: Sequence[Waveform]
    age: float | None
    sex: Sex | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveformSource(RecordSource):
    """A record in a file that `parse` reads as a whole."""

    parse: Callable[[Path], EcgFile]

    @property
    def signal_fields(self) -> tuple[tuple[str, object], ...]:
        """Name and value of everything that the signal depends on, except the content of the file."""
        return (("leads", self.leads), ("rate", self.rate), ("samples", self.samples))

    def read_leads(self) -> NDArray[np.float64]:
        """Read the samples of the leads; see `RecordSource`."""
        try:
            waveform = whole_waveform(self.parse(self.path).waveforms)
            if (waveform.leads, waveform.rate, waveform.samples) != (self.leads, self.rate, self.samples):
                raise DataError("it was replaced since it was opened; run the same command again")
            return np.stack([channel.values() for channel in waveform.channels])
        except Exception as error:  # parsers raise any kind of exception for a damaged file
            raise DataError(f"the signal of {self.path} cannot be read: {first_line(error)}") from error


def open_waveform(path: Path, parse: Callable[[Path], EcgFile]) -> WaveformSource:
    """Return the record of a file. Raises DataError, which names the file, if it cannot be read."""
    try:
        require_regular_file(path.stat())
        file = parse(path)
        waveform = whole_waveform(file.waveforms)
        return WaveformSource(
            path=path,
            name=without_suffix(path).name,
            files=(path.name,),
            rate=waveform.rate,
            samples=waveform.samples,
            leads=waveform.leads,
            age=file.age,
            sex=file.sex,
            parse=parse,
        )
    except Exception as error:  # parsers raise any kind of exception for a damaged file
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error


def whole_waveform(waveforms: Sequence[Waveform]) -> Waveform:
    """Return the waveform with all leads of a file.

    Waveforms of the same time are merged. Another waveform that repeats some of their leads, such as a rhythm strip, is
    left out. Raises DataError if there is none, if several have all leads, or if leads were recorded one after the
    other.
    """
    merged: dict[tuple[str, float, int], Waveform] = {}
    for part in [part for part in waveforms if part.channels]:
        if not (0 < part.rate < float("inf")) or part.samples < 1:
            raise DataError(f"expected a rate and samples above 0, got {part.rate:g} Hz and {part.samples:,} samples")
        first = merged.setdefault(part[:3], part._replace(channels=()))
        merged[part[:3]] = first._replace(channels=first.channels + part.channels)
    candidates = list(merged.values())
    leads = {lead for part in candidates for lead in part.leads}
    required = leads & set(LEADS) or leads
    complete = [part for part in candidates if required <= set(part.leads)]
    if len(complete) != 1:
        parts = "; ".join(
            f"{', '.join(part.leads)} for {part.samples / part.rate:g} s from {part.start}" for part in candidates
        )
        raise DataError(f"expected one waveform with all leads, got {clipped(parts) or 'none in a unit of voltage'}")
    return complete[0]


def finite_number(text: str, element: str) -> float:
    """Return the number in the text of an element. Raises DataError if it is not a number, or not finite."""
    with suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise DataError(f"expected a number in {element}, got {shown(text)}")
