"""Read one WFDB record: signal in mV, rate in Hz, age, sex and diagnoses."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.leads import DERIVED, LEADS, missing_leads
from kdkit_ecg.records.header import Header, Sex, read_header
from kdkit_ecg.records.samples import invalid_values, mismatched_leads, read_steps
from kdkit_ecg.records.signal_lines import UNITS


class ChecksumError(DataError):
    """The samples of a record are not those that its header describes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WfdbRecord:
    """A signal with the fields of its header.

    signal: float32 (leads, time) in mV, leads in the order of LEADS, then any further leads. rate in Hz, age in years.
    codes: SNOMED CT codes without repetition. normalised: the signal is in standard deviations and not in mV.
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

    @property
    def person(self) -> NDArray[np.float32]:
        """The vector of age and sex, (5,) float32; see person_vector."""
        return person_vector(self.age, self.sex)


def person_vector(age: float | None, sex: Sex | None) -> NDArray[np.float32]:
    """Return age/100 (age in years), age known, female, male, sex known: (5,) float32. Unknown values are 0."""
    known_age = age is not None
    return np.array([(age or 0) / 100, known_age, sex == "female", sex == "male", sex is not None], dtype=np.float32)


def read_record(source: Path | Header) -> WfdbRecord:
    """Read a record from the path of its .hea file, or from a header that was already read.

    Invalid samples are interpolated linearly, and take the nearest valid sample at the ends. A lead without a valid
    sample is 0. If of the twelve leads only III, aVR, aVL or aVF are absent, they are computed from I and II.
    Raises DataError, which names the file, if the record cannot be read, and ChecksumError, which is one, if first
    samples and checksums in the header do not match its samples.
    """
    header = source if isinstance(source, Header) else read_header(source)
    missing = missing_files(header)
    if missing:
        raise DataError(f"{header.path} names the signal file {missing[0]}, which is not in the same folder")
    steps = read_steps(header)
    mismatched = mismatched_leads(header, steps)
    if mismatched:
        raise ChecksumError(
            f"the samples of {header.path} do not match the first samples and checksums in it (leads "
            f"{', '.join(mismatched)}); the signal file was converted, damaged or replaced, so fetch it again"
        )
    gains, baselines = (np.array(values)[:, None] for values in (header.gains_per_unit, header.baselines))  # (leads, 1)
    units = np.array([UNITS[unit] for unit in header.units])[:, None]  # normalised units have a factor of 1
    with np.errstate(over="ignore", invalid="ignore"):  # a tiny gain gives samples that are not finite, without notice
        in_units = (steps.astype(np.float64) - baselines) / gains
        in_units[steps == invalid_values(header)] = np.nan
        leads, signal = _with_derived_leads(header.leads, in_units * units)
    ranks = [LEADS.index(lead) if lead in LEADS else len(LEADS) for lead in leads]
    order = sorted(range(len(leads)), key=lambda lead: ranks[lead])  # stable: further leads keep their order
    with np.errstate(over="ignore", invalid="ignore"):
        in_float32 = _interpolate_invalid(signal[order]).astype(np.float32)
    return WfdbRecord(
        name=header.name,
        path=header.path,
        signal=in_float32,
        leads=tuple(leads[lead] for lead in order),
        rate=header.rate,
        age=header.age,
        sex=header.sex,
        codes=header.codes,
        normalised=header.normalised,
    )


def missing_files(header: Header) -> list[str]:
    """Return the files named by the header that do not exist in its folder."""
    return [name for name in header.files if not header.path.with_name(name).is_file()]


def _with_derived_leads(
    leads: tuple[str, ...], signal: NDArray[np.float64]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Append the leads that follow from I and II, if that completes the twelve; signal: (leads, time)."""
    derived = [] if missing_leads(leads) else [lead for lead in LEADS if lead not in leads]
    if not derived:
        return leads, signal
    limb = signal[[leads.index("I"), leads.index("II")]]  # (2, time)
    return (*leads, *derived), np.concatenate([signal, np.array([DERIVED[lead] for lead in derived]) @ limb])


def _interpolate_invalid(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (leads, time) with NaN interpolated over time, in place."""
    for lead in signal:
        invalid = np.isnan(lead)
        if invalid.all():  # no sample to interpolate from
            lead[:] = 0
        elif invalid.any():
            times = np.arange(len(lead))
            lead[invalid] = np.interp(times[invalid], times[~invalid], lead[~invalid])
    return signal
