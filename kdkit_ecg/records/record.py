"""Read one record: signal in mV, rate in Hz, age, sex and diagnoses."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.samples import invalid_values, mismatched_leads, read_steps
from kdkit_ecg.records.signal_lines import UNITS, Header
from kdkit_ecg.records.source import Record, RecordSource, missing_files


class ChecksumError(DataError):
    """The samples of a record are not those that its header describes."""


def read_record(source: Path | RecordSource) -> Record:
    """Read a record from the path of its .hea file, or from a header or another source that was already read.

    Absent limb leads and invalid samples: see `ordered_signal`.
    Raises DataError, which names the file, if the record cannot be read, and ChecksumError, which is one, if first
    samples and checksums in the header do not match its samples.
    """
    return (read_header(source) if isinstance(source, Path) else source).read()


def read_wfdb(header: Header) -> NDArray[np.float64]:
    """Read the samples of a WFDB record, (leads, time); see `read_record`."""
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
        # In place: the leads of a day take gigabytes.
        signal = steps.astype(np.float64)
        signal -= baselines
        signal /= gains
        signal[steps == invalid_values(header)] = np.nan
        signal *= units
    return signal
