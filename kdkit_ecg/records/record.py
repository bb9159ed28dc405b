"""Read one WFDB record: signal in mV, rate in Hz, age, sex and diagnoses."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.header import UNITS, Header, Sex, read_header


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
    sample is 0. Raises DataError, which names the file, if the record cannot be read.
    """
    header = source if isinstance(source, Header) else read_header(source)
    missing = missing_files(header)
    if missing:
        raise DataError(f"{header.path} names the signal file {missing[0]}, which is not in the same folder")
    ranks = [LEADS.index(lead) if lead in LEADS else len(LEADS) for lead in header.leads]
    order = sorted(range(len(header.leads)), key=lambda lead: ranks[lead])  # stable: further leads keep their order
    mv_per_unit = np.array([UNITS[unit] for unit in header.units])
    signal = (_read_physical(header) * mv_per_unit).T[order]  # (leads, time)
    return WfdbRecord(
        name=header.name,
        path=header.path,
        signal=_interpolate_invalid(signal).astype(np.float32),
        leads=tuple(header.leads[lead] for lead in order),
        rate=header.rate,
        age=header.age,
        sex=header.sex,
        codes=header.codes,
        normalised=header.normalised,
    )


def missing_files(header: Header) -> list[str]:
    """Return the signal files named by the header that do not exist in its folder."""
    return [name for name in header.files if not header.path.with_name(name).is_file()]


@contextmanager
def wfdb_readable(header: Header) -> Iterator[str]:
    """Open the path of a record in a form that wfdb accepts.

    wfdb rejects record names with a suffix, such as "E07500.mat" in an early release of the Challenge. Such a record is
    copied to a temporary folder under the name without the suffix.
    """
    raw = header.path.read_bytes()
    line = next(line for line in raw.splitlines() if line.strip() and not line.lstrip().startswith(b"#"))
    if b"." not in line.split()[0]:
        yield str(header.path.with_suffix(""))
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / header.path.name
        copy.write_bytes(raw.replace(line, line.replace(line.split()[0], header.name.encode(), 1), 1))
        for file in header.files:
            copyfile(header.path.with_name(file), copy.with_name(file))
        yield str(copy.with_suffix(""))


def _read_physical(header: Header) -> NDArray[np.float64]:
    """Return (time, leads) in the units of the header, NaN for samples that are marked as invalid."""
    import wfdb  # takes half a second with pandas, which commands that read no record avoid

    try:
        with wfdb_readable(header) as path:
            samples: NDArray[np.float64] = wfdb.rdrecord(path).p_signal
    except Exception as error:  # wfdb raises exceptions of any kind for a damaged file
        raise DataError(f"the signal of {header.path} cannot be read: {error}") from error
    if samples.shape != (header.samples, len(header.leads)):
        raise DataError(
            f"the signal of {header.path} has {samples.shape[0]} samples of {samples.shape[1]} leads, expected "
            f"{header.samples} samples of {len(header.leads)} leads"
        )
    return samples


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
