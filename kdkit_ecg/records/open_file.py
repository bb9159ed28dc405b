"""Open a file of records of any supported kind: WFDB, DICOM, XML, EDF, NumPy, CSV and HDF5."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from kdkit import DataError
from kdkit_ecg.records.array_files import ArrayFormat, open_array_file
from kdkit_ecg.records.dicom import open_dicom
from kdkit_ecg.records.edf import open_edf
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.records.xml_file import open_xml
from kdkit_ecg.utils.record_files import (
    DICOM_SUFFIX,
    EDF_SUFFIX,
    HEADER_SUFFIX,
    NUMBERS_SUFFIXES,
    RECORD_SUFFIXES,
    XML_SUFFIX,
    kind_of,
    without_suffix,
)

# Files of one record that specify their leads, rate and unit.
_DESCRIBED: Mapping[str, Callable[[Path], RecordSource]] = MappingProxyType(
    {HEADER_SUFFIX: read_header, DICOM_SUFFIX: open_dicom, XML_SUFFIX: open_xml, EDF_SUFFIX: open_edf}
)


def best_files(paths: Iterable[Path]) -> list[Path]:
    """Return one file per record, sorted by kind: the best described one of the files with its name."""
    by_record: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda path: RECORD_SUFFIXES.index(kind_of(path))):
        by_record.setdefault(without_suffix(path), path)
    return list(by_record.values())


def open_file(path: Path, arrays: ArrayFormat | None = None) -> Sequence[RecordSource]:
    """Return the records of a file; `read_record` or `Preparation.prepare` reads them.

    arrays: describes files of numbers. Raises DataError, which names the file, if it cannot be read.
    """
    suffix = kind_of(path)
    if suffix in _DESCRIBED:
        return [_DESCRIBED[suffix](path)]
    if suffix not in NUMBERS_SUFFIXES:
        raise DataError(f"{path} is not a file of records; expected one of {', '.join(RECORD_SUFFIXES)}")
    if arrays is None:
        raise DataError(
            f"{path} does not state its rate, unit and leads; pass them, as in arrays=ArrayFormat(rate=400, unit='mV', "
            "leads=('I', 'II'))"
        )
    return open_array_file(path, arrays)
