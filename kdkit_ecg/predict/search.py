"""Find the records that paths name: WFDB records with or without suffix, other files, and folders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdkit import KdkitError
from kdkit.errors import first_line
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.array_files import ArrayFormat, ArraySource
from kdkit_ecg.records.open_file import best_files, open_file
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.utils.record_files import (
    CSV_SUFFIX,
    HEADER_SUFFIX,
    NUMBERS_SUFFIXES,
    RECORD_SUFFIXES,
    SIGNAL_SUFFIXES,
    UNREAD_FORMATS,
    find_record_files,
    kind_of,
    present_file,
)

_UNREAD = "it is a file of {}, which is not read; export it as DICOM, HL7 aECG, EDF or WFDB"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that cannot be predicted. record: its path."""

    record: str
    reason: str


def find_records(paths: Sequence[Path], arrays: ArrayFormat | None) -> Iterator[RecordSource | Refusal]:
    """Yield the records that paths name, in their order, each once; no signal is read.

    Folders are searched for headers, DICOM, XML, EDF and HDF5 files and arrays, and for CSV files if `arrays` describes
    them. Raises nothing: a path without a record gives a refusal.
    """
    seen: set[Path] = set()
    for path in paths:
        for source in _in_folder(path, arrays) if path.is_dir() else _in_file(path, arrays):
            position = getattr(source, "position", None)
            # A file may be in a folder that is also named; each row of a stack is a record.
            identity = Path(source.record) if isinstance(source, Refusal) else source.path / str(position)
            if identity not in seen:
                seen.add(identity)
                yield source


def label_of(source: RecordSource) -> str:
    """Return the path of a record, without suffix for WFDB, and with the name of the row for a stack."""
    is_row = isinstance(source, ArraySource) and source.position is not None
    return f"{source.path}:{source.name}" if is_row else _label(source.path)


def _label(path: Path) -> str:
    return str(path.with_suffix("") if path.suffix.lower() == HEADER_SUFFIX else path)


def _in_file(path: Path, arrays: ArrayFormat | None) -> Iterator[RecordSource | Refusal]:
    file = path
    if path.suffix.lower() in SIGNAL_SUFFIXES:
        file = present_file(path.with_suffix(HEADER_SUFFIX))
    elif kind_of(path) not in RECORD_SUFFIXES:  # the name of a WFDB record, which may have a dot
        file = present_file(path.with_name(path.name + HEADER_SUFFIX))
    if file.exists():
        yield from _opened(file, arrays)
    elif path.exists() and path.suffix.lower() in UNREAD_FORMATS:
        yield Refusal(str(path), _UNREAD.format(UNREAD_FORMATS[path.suffix.lower()]))
    elif path.exists():
        yield Refusal(str(path), f"it has no header {file.name} in its folder, and is not a file of another format")
    else:
        yield Refusal(str(path), "it does not exist")


def _in_folder(folder: Path, arrays: ArrayFormat | None) -> Iterator[RecordSource | Refusal]:
    files = find_record_files(folder)
    for path in (*files.not_listed, *files.unfinished):
        yield Refusal(str(path), "it cannot be read" if path in files.not_listed else "its download is unfinished")
    for path in files.unread:
        yield Refusal(str(path), _UNREAD.format(UNREAD_FORMATS[path.suffix.lower()]))
    opened = [(path, list(_opened(path, None))) for path in files.headers]
    # Headers of segments are not records, and a signal that a header names is not lost.
    named = {path.with_name(name) for path, sources in opened for source in sources
             if not isinstance(source, Refusal) for name in source.files}  # fmt: skip
    for path, sources in opened:
        if path not in named:
            yield from sources
    for path in files.without_header():
        if path not in named:
            yield Refusal(str(path), "it has no header, which names its leads and its rate")
    used = {*best_files([*files.headers, *files.others])}
    lead_names = {*LEADS, *(arrays.leads if arrays else ())}
    for path in files.others:
        suffix = path.suffix.lower()
        # Of files with one name, which are forms of one record, the best is used. Any CSV may be a table.
        if path not in used or (suffix == CSV_SUFFIX and arrays is None):
            continue
        for source in _opened(path, arrays):
            # A table of something else, such as labels, has no column that is a lead.
            if suffix != CSV_SUFFIX or isinstance(source, Refusal) or lead_names & set(source.leads):
                yield source


def _opened(path: Path, arrays: ArrayFormat | None) -> Iterator[RecordSource | Refusal]:
    if arrays is None and path.suffix.lower() in NUMBERS_SUFFIXES:
        yield Refusal(str(path), "it does not state its rate and leads; give --rate and --leads (arrays= in Python)")
        return
    try:
        yield from open_file(path, arrays)
    except (KdkitError, OSError) as error:
        yield Refusal(_label(path), first_line(error))
