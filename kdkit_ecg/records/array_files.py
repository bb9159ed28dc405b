"""Open NumPy arrays and archives, CSV tables and HDF5 files of signals, and read one record of them."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError, RecipeError
from kdkit.errors import first_line
from kdkit_ecg.records.array_format import ArrayFormat, ArraySource, leads_axis, require_numbers
from kdkit_ecg.records.csv_file import CSV_SUFFIX, open_csv, read_csv
from kdkit_ecg.records.numpy_archive import NPZ_SUFFIX, archived_shapes, read_archived
from kdkit_ecg.records.signal_lines import shown
from kdkit_ecg.utils.record_files import require_regular_file

NUMPY_SUFFIX, HDF5_SUFFIXES = ".npy", (".hdf5", ".h5")

MAX_RECORDS, MAX_ID_BYTES = 1_000_000, 256  # of a file, and of a name in it
# Numbers of a record, and of a piece of an HDF5 file, which is compressed as a whole: a small file may hold any number
# of equal ones, and must not fill the memory.
MAX_VALUES = 50_000_000


def open_array_file(path: Path, arrays: ArrayFormat) -> list[ArraySource]:
    """Return the records of a file of numbers, several if it has a stack of them. Reads no signal of a stack.

    The name of a record is that of the file, or in a stack its id, or its number from 0. Raises DataError, which names
    the file, if it cannot be read, and RecipeError for an HDF5 file without h5py.
    """
    suffix = path.suffix.lower()
    if suffix in HDF5_SUFFIXES and importlib.util.find_spec("h5py") is None:
        raise RecipeError(f"{path} needs h5py: pip install 'kdkit[hdf5]'")
    try:
        require_regular_file(path.stat())
        if suffix == CSV_SUFFIX:
            with path.open("rb") as file:
                lines = sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))
            return [_source(path, arrays, max(1, lines), leads=open_csv(path, arrays).leads)]
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
    except Exception as error:  # numpy and h5py raise exceptions of any kind for a damaged file
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error


def read_values(source: ArraySource) -> NDArray[Any]:
    """Return the numbers of a record, (leads, time). Raises DataError and the exceptions of numpy and h5py."""
    suffix = source.path.suffix.lower()
    if suffix == CSV_SUFFIX:
        return read_csv(source.path, source.format, source.leads)
    values: NDArray[Any]
    if suffix == NPZ_SUFFIX:
        values = read_archived(source.path, source.position)
    elif suffix == NUMPY_SUFFIX:
        array = _load_numpy(source.path)
        values = np.array(array if source.position is None else array[source.position])
    else:
        with _hdf5_signals(source.path, source.format) as signals:
            values = signals[() if source.position is None else source.position]
    if values.ndim == 1:
        return values[None]
    return values if leads_axis(values.shape, source.leads) == 0 else values.T


def _load_numpy(path: Path) -> NDArray[Any]:
    """Return the array of a file, which is mapped and not read. Objects, which would be unpickled, are refused."""
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
        # (time, leads) is the only record of its file.
        count, *shape = signals.shape if signals.ndim == 3 else (1, *signals.shape)
        piece = int(np.prod(signals.chunks or (1, *shape), dtype=object))
        if max(piece, shape[0] * shape[1]) > MAX_VALUES:
            raise DataError(f"expected at most {MAX_VALUES:,} numbers of a record and of a piece of the file")
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
    """Return a dataset whose content is in this file. Links and external storage could name any file of the disk."""
    import h5py

    link = file.get(name, getlink=True)
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise DataError(f"expected a dataset {name!r} in this file; it has {shown(', '.join(list(file)[:20]))}")
    return dataset


def _source(path: Path, arrays: ArrayFormat, samples: int, **fields: Any) -> ArraySource:
    fields = {"leads": arrays.leads, "name": path.stem, **fields}
    return ArraySource(path=path, files=(path.name,), rate=arrays.rate, samples=samples, format=arrays, **fields)


def _stack(path: Path, arrays: ArrayFormat, samples: int, names: list[str]) -> list[ArraySource]:
    first = _source(path, arrays, samples)
    return [replace(first, name=name, position=position) for position, name in enumerate(names)]


def _require_few(count: int) -> int:
    if count > MAX_RECORDS:
        raise DataError(f"expected at most {MAX_RECORDS:,} records in a file, got {count:,}")
    return count
