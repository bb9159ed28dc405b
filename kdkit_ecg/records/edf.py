"""Records in EDF and EDF+ files, which edfio reads; here its signals become leads in mV at one rate."""

import importlib.util
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError, RecipeError
from kdkit.errors import first_line
from kdkit_ecg.leads import LEADS, standard_names
from kdkit_ecg.person import Sex, age_between, parse_sex
from kdkit_ecg.records.source import UNITS, VOLTAGES, RecordSource
from kdkit_ecg.utils.messages import clipped
from kdkit_ecg.utils.record_files import require_regular_file

_ECG = re.compile("e[ck]g", re.IGNORECASE)
# The signal types of EDF+ that labels begin with, such as "EEG Fpz-Cz", except that of an ECG.
_NO_ECG = re.compile(r"(eeg|eog|erg|emg|meg|mcg|ep|temp|resp|sao2|light|sound|event)\b", re.IGNORECASE)

_HEADER_BYTES = 256  # of the header, without the part about the signals

# Bytes of this header: the number of data records, and the reserved field with the kind of EDF+.
_RECORD_COUNT, _KIND = slice(236, 244), slice(192, 197)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdfSource(RecordSource):
    """A record in an EDF file. positions: the positions of its leads among the signals."""

    positions: tuple[int, ...]

    @property
    def signal_fields(self) -> tuple[tuple[str, object], ...]:
        """Name and value of everything that the signal depends on, except the content of the file."""
        return (("leads", self.leads), ("rate", self.rate), ("positions", self.positions), ("units", self.units))

    def read_leads(self) -> NDArray[np.float64]:
        """Read the samples of the leads; see `RecordSource`."""
        try:
            signals = _read(self.path).signals
            # (leads, time); the physical values of a signal are float64.
            values: NDArray[np.float64] = np.stack([signals[position].data for position in self.positions])
        except Exception as error:  # edfio raises any kind of exception for a damaged file
            raise DataError(f"the signal of {self.path} cannot be read: {first_line(error)}") from error
        factors = np.array([UNITS[unit] for unit in self.units])[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(values * factors)


def open_edf(path: Path) -> EdfSource:
    """Return the record of an EDF file: its signals in a unit of voltage, at the rate of the twelve leads among them.

    Other signals, such as respiration, are not read. Raises DataError, which names the file, if it cannot be read or
    has gaps (EDF+D), and RecipeError without edfio.
    """
    if importlib.util.find_spec("edfio") is None:
        raise RecipeError(f"{path} needs edfio: pip install 'kdkit[edf]'")
    try:
        require_regular_file(path.stat())
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
        if len(start) < _HEADER_BYTES:
            raise DataError(f"it has {len(start)} bytes; expected a header of at least {_HEADER_BYTES}")
        if start[_KIND] == b"EDF+D":
            raise DataError(
                "it has gaps (EDF+D), so its samples are not evenly spaced; convert it to files without gaps, "
                "EDF+C, such as with EDFbrowser"
            )
        edf = _read(path, interrupted=start[_RECORD_COUNT].strip() == b"-1")
        signals = edf.signals
        names = standard_names(signal.label for signal in signals)
        units = [signal.physical_dimension.strip().lower() for signal in signals]
        chosen = lead_positions(signals, names, units)
        first = signals[chosen[0]]
        age, sex = _person(edf)
        return EdfSource(
            path=path,
            name=path.stem,
            files=(path.name,),
            rate=float(first.sampling_frequency),
            samples=edf.num_data_records * first.samples_per_data_record,
            leads=tuple(names[position] for position in chosen),
            positions=tuple(chosen),
            units=tuple(units[position] for position in chosen),
            age=age,
            sex=sex,
            counted=start[_RECORD_COUNT].strip() == b"-1",
        )
    except Exception as error:  # edfio raises any kind of exception for a damaged file
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error


def lead_positions(signals: Sequence[Any], names: Sequence[str], units: Sequence[str]) -> list[int]:
    """Return the positions of the leads among the signals of a file. Raises DataError if there is none.

    These are signals in a unit of voltage, at the rate of the twelve leads among them, which must have one rate.
    """
    usable = [
        position
        for position, unit in enumerate(units)
        if unit in (*VOLTAGES, "nu") and not _NO_ECG.match(signals[position].label)
    ]
    # A pulse wave has normalised units next to leads in mV.
    if any(units[position] != "nu" for position in usable):
        usable = [position for position in usable if units[position] != "nu" or names[position] in LEADS]
    # A polysomnography has one signal named ECG among others of the brain, which may have the same rate.
    leads_of_ecg = [position for position in usable if names[position] in LEADS]
    named_ecg = [position for position in usable if _ECG.search(signals[position].label)]
    usable = usable if leads_of_ecg else named_ecg or usable
    rates = {signals[position].sampling_frequency for position in leads_of_ecg or named_ecg or usable}
    if not rates:
        listed = ", ".join(f"{name} in {unit!r}" for name, unit in zip(names, units, strict=True))
        raise DataError(f"it has no signal in mV, uV, nV, V or NU; it has {clipped(listed) or 'none'}")
    if len(rates) > 1:
        raise DataError(f"expected one rate for all leads, got {', '.join(f'{rate:g} Hz' for rate in sorted(rates))}")
    return [position for position in usable if signals[position].sampling_frequency in rates]


def _read(path: Path, *, interrupted: bool = True) -> Any:
    """Return the file as edfio reads it, with signals that are mapped. interrupted: a wrong length is no error."""
    import edfio

    with warnings.catch_warnings():
        # A warning means that the file is shorter or longer than its header declares.
        warnings.simplefilter("ignore" if interrupted else "error")
        return edfio.read_edf(path, header_encoding="latin-1")


def _person(edf: Any) -> tuple[float | None, Sex | None]:
    """Return age and sex from the fields of EDF+, None if they are unknown. Names are not read."""
    age, sex = None, None
    # A field may not follow EDF+ in any way.
    with suppress(ValueError, AttributeError, IndexError, KeyError, TypeError):
        sex = parse_sex(edf.patient.sex or "")
        age = age_between(*(f"{day:%Y%m%d}" for day in (edf.patient.birthdate, edf.recording.startdate)))
    return age, sex
