"""One WFDB record: the signal in mV, its rate in Hz, who it is of and what was found."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.header import UNITS, Header, Sex, read_header


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """A signal and what is known of it.

    signal: float32 (leads, time) in mV, leads in the order of LEADS, any others after them. rate in Hz, age in years.
    codes: SNOMED CT codes, each once. normalised: the signal is in standard deviations and no longer in mV.
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
        """(5,) float32, see person_vector."""
        return person_vector(self.age, self.sex)


def person_vector(age: float | None, sex: Sex | None) -> NDArray[np.float32]:
    """Return age/100 (age in years), age known, female, male, sex known: (5,) float32; what is unknown is 0."""
    known = age is not None
    return np.array([(age or 0) / 100, known, sex == "female", sex == "male", sex is not None], dtype=np.float32)


def read_record(source: Path | Header) -> Record:
    """Read a record by its .hea file, or by the header that was read from it.

    Samples marked invalid are bridged by a straight line (by the nearest valid one at the ends); a lead without any
    valid sample is 0. Raises DataError, which names the file, for whatever cannot be read.
    """
    header = source if isinstance(source, Header) else read_header(source)
    missing = missing_files(header)
    if missing:
        raise DataError(f"{header.path} names the signal file {missing[0]}, which is not beside it")
    order = sorted(range(len(header.leads)), key=lambda place: _rank(header.leads[place]))
    in_mv = np.array([UNITS[unit] for unit in header.units])
    signal = (_samples(header) * in_mv).T[order]
    return Record(
        name=header.name,
        path=header.path,
        signal=_bridged(signal).astype(np.float32),
        leads=tuple(header.leads[place] for place in order),
        rate=header.rate,
        age=header.age,
        sex=header.sex,
        codes=header.codes,
        normalised=header.normalised,
    )


def missing_files(header: Header) -> list[str]:
    """Return the signal files that the header names and its folder lacks."""
    return [name for name in header.files if not header.path.with_name(name).is_file()]


def _rank(lead: str) -> int:
    return LEADS.index(lead) if lead in LEADS else len(LEADS)


def _samples(header: Header) -> NDArray[np.float64]:
    """Return (time, leads) in the header's own units, NaN where a sample is marked invalid."""
    try:
        read = _wfdb_record(header).p_signal
    except Exception as error:  # wfdb raises whatever its arithmetic meets in a damaged file
        raise DataError(f"the signal of {header.path} cannot be read: {error}") from error
    if read.shape != (header.samples, len(header.leads)):
        expected = f"{header.samples} samples of {len(header.leads)} leads"
        raise DataError(
            f"the signal of {header.path} is {read.shape[0]} samples of {read.shape[1]} leads, not {expected}"
        )
    samples: NDArray[np.float64] = read
    return samples


def _wfdb_record(header: Header) -> Any:
    import wfdb  # half a second with pandas: whoever reads no record need not wait for it

    raw = header.path.read_bytes()
    line = next(line for line in raw.splitlines() if line.strip() and not line.lstrip().startswith(b"#"))
    if b"." not in line.split()[0]:
        return wfdb.rdrecord(str(header.path.with_suffix("")))
    # wfdb refuses record names with a suffix, so it is shown a copy without
    with tempfile.TemporaryDirectory() as folder:
        mended = Path(folder) / header.path.name
        mended.write_bytes(raw.replace(line, line.replace(line.split()[0], header.name.encode(), 1), 1))
        for file in header.files:
            copyfile(header.path.with_name(file), mended.with_name(file))
        return wfdb.rdrecord(str(mended.with_suffix("")))


def _bridged(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (leads, time) with NaN interpolated in time, in place."""
    for lead in signal:
        invalid = np.isnan(lead)
        if invalid.all():
            lead[:] = 0
        elif invalid.any():
            times = np.arange(len(lead))
            lead[invalid] = np.interp(times[invalid], times[~invalid], lead[~invalid])
    return signal
