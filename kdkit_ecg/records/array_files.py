"""Records in files of numbers that do not describe themselves: NumPy arrays and archives, CSV tables and HDF5 files.

numpy and h5py read the files; the user's description gives their axes, rate, unit and leads.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError, RecipeError
from kdkit.errors import did_you_mean, first_line
from kdkit.utils.validation import is_number, validate_above_zero, validate_switches
from kdkit_ecg.leads import standard_names
from kdkit_ecg.records.csv_file import open_csv, read_csv
from kdkit_ecg.records.numpy_archive import archived_shapes, read_archived
from kdkit_ecg.records.source import MAX_CHANNELS, UNITS, RecordSource
from kdkit_ecg.utils.messages import shown
from kdkit_ecg.utils.record_files import CSV_SUFFIX, HDF5_SUFFIXES, NPZ_SUFFIX, NUMPY_SUFFIX, require_regular_file

MAX_RECORDS, MAX_ID_BYTES = 1_000_000, 256  # of a file, and of a name in it
# Numbers in a record, and in a chunk of an HDF5 file, which is compressed as a whole: a small file may hold any number
# of equal values, and must not fill the memory.
MAX_VALUES = 50_000_000
UNIT_NAMES = ("mV", "uV", "nV", "V", "NU")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayFormat:
    """A description of the signals in files of numbers (.npy, .npz, .csv, .hdf5), which do not describe themselves.

    rate: Hz. unit: "mV", "uV", "nV", "V", or "NU" for standard deviations. leads: names in the order of the array; ()
    if the first line of each CSV file has them. Their number determines which axis is time. gain: steps per unit, for
    integers from a converter. invalid: the number that marks invalid samples in addition to NaN, such as -32768; None
    if there is none. padded: whether short records have zeros, as in CODE-15%, or NaN at their ends; these are then
    removed.
    signals, ids: names of the datasets of an HDF5 file, (records, time, leads) and (records,).

    Raises RecipeError for a unit that does not exist, repeated leads, and numbers that are not above 0.
    """

    rate: float
    unit: str
    leads: tuple[str, ...] = ()
    gain: float = 1.0
    invalid: float | None = None
    padded: bool = False
    signals: str = "tracings"
    ids: str = "exam_id"

    def __post_init__(self) -> None:
        if not isinstance(self.unit, str) or not self.unit or self.unit.lower() not in UNITS:
            hint = did_you_mean(str(self.unit), UNIT_NAMES)
            raise RecipeError(f"unit={self.unit!r} is not a unit of a signal; {hint}")
        validate_above_zero("rate", self.rate)
        validate_above_zero("gain", self.gain)
        if self.invalid is not None and not is_number(self.invalid):
            raise RecipeError(f"invalid must be a number that marks invalid samples, or None, got {self.invalid!r}")
        validate_switches(padded=self.padded)
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
    def signal_fields(self) -> tuple[tuple[str, object], ...]:
        """Name and value of everything that the signal depends on, except the content of the file."""
        return (("leads", self.leads), ("format", self.format), ("position", self.position))

    def read_leads(self) -> NDArray[np.float64]:
        """Read the samples of the leads; see `RecordSource`."""
        try:
            values = self._values()  # (leads, time)
        except Exception as error:  # numpy and h5py raise any kind of exception for a damaged file
            raise DataError(f"the signal of {self.path} cannot be read: {first_line(error)}") from error
        with np.errstate(over="ignore", invalid="ignore"):
            signal = values.astype(np.float64) * (UNITS[self.units[0]] / self.format.gain)
        if self.format.invalid is not None:
            signal[values == self.format.invalid] = np.nan
        if not self.format.padded:
            return signal
        used = np.flatnonzero(np.nan_to_num(signal).any(axis=0))  # the samples that are not 0 or NaN in all leads
        return signal[:, used[0] : used[-1] + 1] if len(used) else signal

    def _values(self) -> NDArray[Any]:
        """Return the numbers of the record, (leads, time). Raises DataError and the exceptions of numpy and h5py."""
        suffix = self.path.suffix.lower()
        if suffix == CSV_SUFFIX:
            return read_csv(self.path, self.format.leads, self.format.unit, self.leads, self.rate)
        values: NDArray[Any]
        if suffix == NPZ_SUFFIX:
            values = read_archived(self.path, self.position)
        elif suffix == NUMPY_SUFFIX:
            array = _load_numpy(self.path)
            values = np.array(array if self.position is None else array[self.position])
        else:
            with _hdf5_signals(self.path, self.format) as signals:
                values = signals[() if self.position is None else self.position]
        if values.ndim == 1:
            return values[None]
        return values if leads_axis(values.shape, self.leads) == 0 else values.T


def open_array_file(path: Path, arrays: ArrayFormat) -> list[ArraySource]:
    """Return the records of a file of numbers, several if it has a stack of them. Reads no signal from a stack.

    The name of a record is that of the file; in a stack, it is its id, or its number from 0. Raises DataError, which
    names the file, if it cannot be read, and RecipeError for an HDF5 file without h5py.
    """
    suffix = path.suffix.lower()
    if suffix in HDF5_SUFFIXES and importlib.util.find_spec("h5py") is None:
        raise RecipeError(f"{path} needs h5py: pip install 'kdkit[hdf5]'")
    try:
        require_regular_file(path.stat())
        if suffix == CSV_SUFFIX:
            with path.open("rb") as file:
                lines = sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))
            leads = open_csv(path, arrays.leads, arrays.unit).leads
            return [_source(path, arrays, max(1, lines), leads=leads)]
        if not arrays.leads:
            raise DataError(
                "it has no names of leads; give --leads, or ArrayFormat(leads=...), in the order of the array"
            )
        if suffix == NPZ_SUFFIX:
            return [
                _source(path, arrays, shape[1 - leads_axis(shape, arrays.leads)], name=name, position=position)
                for position, name, shape in archived_shapes(path, len(arrays.leads), most=MAX_VALUES)
            ]
        return _open_numpy(path, arrays) if suffix == NUMPY_SUFFIX else _open_hdf5(path, arrays)
    except Exception as error:  # numpy and h5py raise any kind of exception for a damaged file
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error


def _load_numpy(path: Path) -> NDArray[Any]:
    """Return the array of a file, mapped but not read. Objects, which would be unpickled, are refused."""
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _open_numpy(path: Path, arrays: ArrayFormat) -> list[ArraySource]:
    array = _load_numpy(path)
    require_numbers(array.dtype)
    if array.ndim == 1 and len(arrays.leads) == 1 and len(array):
        return [_source(path, arrays, len(array))]
    if array.ndim not in (2, 3):
        raise DataError(f"expected the axes time and leads, or records, time and leads; got the shape {array.shape}")
    samples = array.shape[-2:][1 - leads_axis(array.shape[-2:], arrays.leads)]
    if array.ndim == 2:
        return [_source(path, arrays, samples)]
    return _stack(path, arrays, samples, list(map(str, range(_require_few(len(array))))))


def _open_hdf5(path: Path, arrays: ArrayFormat) -> list[ArraySource]:
    with _hdf5_signals(path, arrays) as signals:
        require_numbers(signals.dtype)
        if signals.ndim not in (2, 3):
            raise DataError(f"expected {arrays.signals} of shape (records, time, leads), got {signals.shape}")
        # (time, leads) is the only record in its file.
        count, *shape = signals.shape if signals.ndim == 3 else (1, *signals.shape)
        piece = int(np.prod(signals.chunks or (1, *shape), dtype=object))
        if max(piece, shape[0] * shape[1]) > MAX_VALUES:
            raise DataError(f"expected at most {MAX_VALUES:,} numbers in a record and in a chunk of the file")
        _require_few(count)
        samples = shape[1 - leads_axis(tuple(shape), arrays.leads)]
        if signals.ndim == 2:
            return [_source(path, arrays, samples)]
        names = list(map(str, range(count)))
        if arrays.ids in signals.file:
            ids = _hdf5_dataset(signals.file, arrays.ids)
            if ids.shape != (count,) or ids.dtype.itemsize > MAX_ID_BYTES:
                raise DataError(f"expected an id in {arrays.ids} for each of the {count} records, got {ids.shape}")
            names = [id.decode() if isinstance(id, bytes) else str(id) for id in ids[:].tolist()]
    return _stack(path, arrays, samples, names)


@contextmanager
def _hdf5_signals(path: Path, arrays: ArrayFormat) -> Iterator[Any]:
    import h5py

    with h5py.File(path, "r") as file:
        yield _hdf5_dataset(file, arrays.signals)


def _hdf5_dataset(file: Any, name: str) -> Any:
    """Return a dataset whose content is in this file. Links and external storage could name any file on the disk."""
    import h5py

    link = file.get(name, getlink=True)
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise DataError(
            f"expected a dataset {name!r} in this file; it has {shown(', '.join(list(file)[:20]))}; name one by "
            "--signals, or ArrayFormat(signals=...)"
        )
    return dataset


def _source(path: Path, arrays: ArrayFormat, samples: int, **fields: Any) -> ArraySource:
    fields = {"leads": arrays.leads, "name": path.stem, "files": (path.name,), **fields}
    units = (arrays.unit.lower(),) * len(fields["leads"])
    return ArraySource(path=path, rate=arrays.rate, samples=samples, units=units, format=arrays, **fields)


def _stack(path: Path, arrays: ArrayFormat, samples: int, names: list[str]) -> list[ArraySource]:
    first = _source(path, arrays, samples)
    return [replace(first, name=name, position=position) for position, name in enumerate(names)]


def _require_few(count: int) -> int:
    if count > MAX_RECORDS:
        raise DataError(f"expected at most {MAX_RECORDS:,} records in a file, got {count:,}")
    return count


def leads_axis(shape: tuple[int, ...], leads: tuple[str, ...]) -> int:
    """Return which of the two axes of a record, (leads, time) or (time, leads), is the leads."""
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
