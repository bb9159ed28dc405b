"""Records in files of numbers that do not describe themselves: NumPy arrays, CSV tables and HDF5 files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError, RecipeError
from kdkit.errors import did_you_mean, first_line
from kdkit.utils.validation import is_number
from kdkit_ecg.leads import standard_names
from kdkit_ecg.records.signal_lines import MAX_CHANNELS, UNITS, shown
from kdkit_ecg.records.source import RecordSource

UNIT_NAMES = ("mV", "uV", "V", "NU")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayFormat:
    """The description of the signals in files of numbers (.npy, .npz, .csv, .hdf5), which these files lack.

    rate: Hz. unit: "mV", "uV", "V", or "NU" for standard deviations. leads: names in the order of the array; () if the
    first line of each CSV file has them. Which axis is time follows from their number. gain: steps per unit, for
    integers of a converter. padded: whether short records have zeros at their ends, as in CODE-15%; these are removed.
    signals, ids: names of the datasets of an HDF5 file, (records, time, leads) and (records,).

    Raises RecipeError for a unit that does not exist, repeated leads, and numbers that are not above 0.
    """

    rate: float
    unit: str
    leads: tuple[str, ...] = ()
    gain: float = 1.0
    padded: bool = False
    signals: str = "tracings"
    ids: str = "exam_id"

    def __post_init__(self) -> None:
        if not isinstance(self.unit, str) or not self.unit or self.unit.lower() not in UNITS:
            hint = did_you_mean(str(self.unit), UNIT_NAMES)
            raise RecipeError(f"unit={self.unit!r} is not a unit of a signal; {hint}")
        for name in ("rate", "gain"):
            value = getattr(self, name)
            if not (is_number(value) and value > 0):
                raise RecipeError(f"{name} must be a finite number above 0, got {value!r}")
        if isinstance(self.leads, str):
            raise RecipeError(f"leads must be a tuple of names, such as ('I', 'II'), got {self.leads!r}")
        object.__setattr__(self, "leads", standard_names(self.leads))
        if len({lead.lower() for lead in self.leads}) < len(self.leads):
            raise RecipeError(f"leads must be different names, got {', '.join(self.leads)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySource(RecordSource):
    """A record in a file of numbers. position: its row in a file of several records; None if it is the only one."""

    format: ArrayFormat
    position: int | None = None

    @property
    def normalised(self) -> bool:
        """Whether the signal is in standard deviations and not in mV."""
        return self.format.unit.lower() == "nu"

    @property
    def signal_fields(self) -> tuple[tuple[str, object], ...]:
        """Name and value of all that the signal depends on, apart from the content of the file."""
        return (("leads", self.leads), ("format", self.format), ("position", self.position))

    def read_leads(self) -> NDArray[np.float64]:
        """Read the samples of the leads; see `RecordSource`."""
        from kdkit_ecg.records.array_files import read_values  # which imports this module

        try:
            values = read_values(self)  # (leads, time)
        except Exception as error:  # numpy and h5py raise exceptions of any kind for a damaged file
            raise DataError(f"the signal of {self.path} cannot be read: {first_line(error)}") from error
        with np.errstate(over="ignore", invalid="ignore"):
            signal = values.astype(np.float64) * (UNITS[self.format.unit.lower()] / self.format.gain)
        return without_padding(signal) if self.format.padded else signal


def without_padding(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (leads, time) without the samples at both ends that are 0 in all leads; all of it if there is no other."""
    used = np.flatnonzero(signal.any(axis=0))
    return signal[:, used[0] : used[-1] + 1] if len(used) else signal


def leads_axis(shape: tuple[int, ...], leads: tuple[str, ...]) -> int:
    """Return which of the two axes of a record, (leads, time) or (time, leads), is that of the leads."""
    axes = [axis for axis, size in enumerate(shape) if size == len(leads)]
    if len(axes) != 1 or min(shape) < 1 or len(leads) > MAX_CHANNELS:
        raise DataError(
            f"expected one axis of time and one of the {len(leads)} leads {shown(', '.join(leads))}; got the shape "
            f"{shape}"
        )
    return axes[0]


def require_numbers(dtype: Any) -> None:
    """Raise DataError for anything but integers and real numbers."""
    if dtype.kind not in "iuf":
        raise DataError(f"expected integers or real numbers, got values of type {dtype}")
