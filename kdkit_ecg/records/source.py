"""A record: as a description whose signal has not been read yet, and after reading."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.leads import LEADS, derivation, missing_leads
from kdkit_ecg.person import Sex, person_vector
from kdkit_ecg.utils.messages import clipped

Signal = NDArray[np.floating[Any]]

# Units of voltage in mV, in lower case.
VOLTAGES: Mapping[str, float] = MappingProxyType(
    {"mv": 1.0, "uv": 1e-3, "\u00b5v": 1e-3, "\u03bcv": 1e-3, "nv": 1e-6, "v": 1e3}
)
# A header without a unit means mV. NU (normalised units) are standard deviations, and are not converted.
UNITS: Mapping[str, float] = MappingProxyType({"": 1.0, "nu": 1.0, **VOLTAGES})
MAX_CHANNELS = 1_024  # of a record


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """A signal with the fields of its header.

    signal: float32 (leads, time) in mV, the twelve leads first, in the order of LEADS. rate in Hz, age in years.
    codes: the diagnoses, such as SNOMED CT codes, without repetition. normalised: the signal is in standard deviations,
    not in mV. invalid: the share of samples of each lead that were interpolated; () if unknown.
    """

    name: str
    path: Path
    signal: NDArray[np.float32]
    leads: tuple[str, ...]
    rate: float
    age: float | None
    sex: Sex | None
    codes: tuple[str, ...]
    normalised: bool
    invalid: tuple[float, ...] = ()

    @property
    def person(self) -> NDArray[np.float32]:
        """The vector of age and sex, (5,) float32; see person_vector."""
        return person_vector(self.age, self.sex)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSource(ABC):
    """A record that can be read: the header of a WFDB record, or a record in another file.

    path: the file that describes the record. files: names of the files in its folder that hold the signal. rate in Hz,
    samples per lead. name, age in years, sex and codes may be replaced by values from a table. patient and database
    come from tables, "" if unknown.
    units: of each lead, in lower case; () if `read_leads` gives mV in any case.
    checks: the first sample and the checksum of each lead, (0, 0) if unknown; () if the file has none.
    default_gains: the leads without a gain, for which the default of WFDB is used. counted: whether the number of
    samples comes from the file, because the header has none. renamed_files: those without a suffix in the header.

    Raises DataError for a lead that occurs twice, in any case.
    """

    path: Path
    rate: float
    samples: int
    leads: tuple[str, ...]
    files: tuple[str, ...]
    name: str = ""
    age: float | None = None
    sex: Sex | None = None
    codes: tuple[str, ...] = ()
    patient: str = ""
    database: str = ""
    units: tuple[str, ...] = ()
    checks: tuple[tuple[int, int], ...] = ()
    default_gains: tuple[str, ...] = ()
    counted: bool = False
    renamed_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({lead.lower() for lead in self.leads}) < len(self.leads):
            raise DataError(f"expected every lead once, got {clipped(', '.join(self.leads))}")

    @property
    def normalised(self) -> bool:
        """Whether any lead is in standard deviations (NU), not in mV."""
        return "nu" in self.units

    @property
    @abstractmethod
    def signal_fields(self) -> tuple[tuple[str, object], ...]:
        """Name and value of everything that the signal depends on, except the content of `files` and `description`."""

    @abstractmethod
    def read_leads(self) -> NDArray[np.float64]:
        """Read the samples of `leads`, (leads, time): in mV, or in standard deviations if normalised; NaN if invalid.

        Raises DataError, which names the file, if they cannot be read.
        """

    def read(self) -> Record:
        """Read the signal. Raises DataError, which names the file, if it cannot be read."""
        with np.errstate(over="ignore", invalid="ignore"):  # numbers near the largest float are refused later
            leads, signal, invalid = ordered_signal(self.read_leads(), self.leads, derive=not self.normalised)
        return Record(
            name=self.name,
            path=self.path,
            signal=signal,
            leads=leads,
            rate=self.rate,
            age=self.age,
            sex=self.sex,
            codes=self.codes,
            normalised=self.normalised,
            invalid=invalid,
        )

    def absent_leads(self, leads: Sequence[str]) -> list[str]:
        """Return the leads that the record neither has nor can derive: in mV, two limb leads give the others."""
        if not self.normalised:
            return missing_leads(self.leads, leads)
        # Leads that were each scaled by their own deviation are no longer sums of each other.
        return [lead for lead in leads if lead not in self.leads]

    def description(self) -> bytes:
        """Return the bytes of a header in a separate file, b"" if there is none. Raises DataError, OSError."""
        return b""

    def most_samples(self) -> int:
        """Return an upper bound of the samples per lead. Raises OSError."""
        return self.samples


def missing_files(source: RecordSource) -> list[str]:
    """Return the files named by a source that do not exist in its folder."""
    return [name for name in source.files if not source.path.with_name(name).is_file()]


def select_leads(signal: Signal, names: Sequence[str], leads: Sequence[str]) -> Signal:
    """Return the signal of these leads, in this order: (names, time) -> (leads, time).

    An absent limb lead is derived if two others are present (Einthoven, Goldberger). Otherwise raises DataError, which
    names the absent leads.
    """
    missing = missing_leads(names, leads)
    if missing:
        raise DataError(
            f"expected the leads {', '.join(leads)}, or two limb leads to derive the others from; got "
            f"{', '.join(names)}, which do not give {', '.join(missing)}"
        )
    row = {name: position for position, name in enumerate(names)}
    if all(lead in row for lead in leads):
        return signal[[row[lead] for lead in leads]]
    selected = np.empty((len(leads), signal.shape[1]), signal.dtype)
    for position, lead in enumerate(leads):
        if lead in row:
            selected[position] = signal[row[lead]]
        else:
            # Element by element, so that the numbers do not depend on a machine's matrix product.
            (first, p), (second, q) = derivation(names, lead).items()
            selected[position] = p * signal[row[first]] + q * signal[row[second]]
    return selected


def ordered_signal(
    signal: NDArray[np.float64], names: Sequence[str], *, derive: bool
) -> tuple[tuple[str, ...], NDArray[np.float32], tuple[float, ...]]:
    """Return the names and the signal in the usual order, (leads, time): the twelve leads, then others in their order.

    The last value is the share of invalid samples of each lead.

    derive: derive the absent ones of the twelve leads if all of them are limb leads that follow from others, as is
    right for mV; a smaller set stays as it is.
    Invalid samples, which are NaN, are interpolated linearly, and take the nearest valid sample at the ends. A lead
    without a valid sample is 0.
    """
    twelve = LEADS if derive and not missing_leads(names) else [lead for lead in LEADS if lead in names]
    leads = (*twelve, *(name for name in names if name not in LEADS))
    ordered = np.empty((len(leads), signal.shape[1]), np.float32)
    shares = []
    for row, name in enumerate(leads):  # row by row: the leads of a day take gigabytes
        lead = select_leads(signal, names, [name])[0]
        invalid = np.isnan(lead)
        if invalid.all():  # no sample to interpolate from
            lead[:] = 0
        elif invalid.any():
            times = np.arange(len(lead))
            lead[invalid] = np.interp(times[invalid], times[~invalid], lead[~invalid])
        ordered[row] = lead
        shares.append(invalid.sum().item() / max(1, len(lead)))
    return leads, ordered, tuple(shares)
