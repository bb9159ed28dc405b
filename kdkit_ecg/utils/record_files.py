"""Find the files of records in folder trees, with linked folders, read their names, and measure free disk space."""

import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import NamedTuple

from kdkit import DataError

MAX_HEADER_BYTES = 1 << 20  # of a header; those of the Challenges have about a kilobyte

MAX_SUFFIX = 5  # characters, with the dot, of a suffix that is searched for in any case

HEADER_SUFFIX, SIGNAL_SUFFIXES, UNFINISHED_SUFFIX = ".hea", (".mat", ".dat"), ".part"
DICOM_SUFFIX, XML_SUFFIX, EDF_SUFFIX = ".dcm", ".xml", ".edf"
NUMPY_SUFFIX, NPZ_SUFFIX, CSV_SUFFIX, HDF5_SUFFIXES = ".npy", ".npz", ".csv", (".hdf5", ".h5")
# Files of numbers do not specify their leads, rate and unit.
NUMBERS_SUFFIXES = (NUMPY_SUFFIX, NPZ_SUFFIX, CSV_SUFFIX, *HDF5_SUFFIXES)
OTHER_SUFFIXES = (DICOM_SUFFIX, XML_SUFFIX, EDF_SUFFIX, *NUMBERS_SUFFIXES)
# Of files with one name, such as A1.hea and A1.csv, the first kind in this list describes itself best.
RECORD_SUFFIXES = (HEADER_SUFFIX, *OTHER_SUFFIXES)
# Formats of ECGs that are not read, by suffix.
UNREAD_FORMATS: Mapping[str, str] = MappingProxyType(
    {".scp": "SCP-ECG", ".ecg": "ISHNE", ".mwf": "MFER", ".bdf": "BDF", ".gdf": "GDF"}
)

_KNOWN_SUFFIXES = frozenset((*RECORD_SUFFIXES, *SIGNAL_SUFFIXES, UNFINISHED_SUFFIX))
_DICOM_MARK = slice(128, 132)  # the bytes DICM

_PIECE = 1 << 16  # bytes of a header that are read at a time
_READ_AT_ONCE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # not all systems have both
_SUFFIX = re.compile(r"\.(hea|mat|dat)$", re.IGNORECASE)

_ATTRIBUTES = "._"  # starts the names of files that macOS writes next to others on foreign disks and in archives

# Releases split large folders into shards: g1, g2, ... in the Challenges, and 00000, 01000, ... in PTB-XL.
_SHARD = re.compile(r"g\d+|\d+")


class RecordFiles(NamedTuple):
    """The files in a folder tree, each kind sorted by path.

    others: files of other formats that may hold signals: DICOM, XML, EDF, NumPy, CSV and HDF5. unfinished: files of an
    interrupted fetch. unread: ECG files in a format that is not read, unless there is a readable file of the same name.
    not_listed: folders that cannot be read, and broken links.
    """

    headers: tuple[Path, ...]
    signals: tuple[Path, ...]
    others: tuple[Path, ...]
    unfinished: tuple[Path, ...]
    unread: tuple[Path, ...]
    not_listed: tuple[Path, ...]

    def without_header(self) -> list[Path]:
        """Return the signals without a header of the same name. A header with another name may name them."""
        described = {path.with_suffix("") for path in self.headers}
        return [path for path in self.signals if path.with_suffix("") not in described]


def find_record_files(folder: Path) -> RecordFiles:
    """Return the files of records in a folder and its subfolders. Links are followed, but no folder is read twice.

    The files ._NAME of macOS are left out.
    """
    files, not_listed = [], []
    visited: set[tuple[int, int]] = set()
    folders = [folder]
    links: list[Path] = []
    while folders or links:
        # Links last: the path of a folder that can be reached without a link does not contain one.
        current = folders.pop() if folders else links.pop(0)
        try:
            state = current.stat()
            identity = (state.st_dev, state.st_ino)
            entries = [] if identity in visited else sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError:
            not_listed.append(current)
            continue
        visited.add(identity)  # a link to a parent would otherwise lead to the same folder without end
        for entry in entries:
            if entry.name.startswith(_ATTRIBUTES):
                continue
            path = current / entry.name
            if entry.is_symlink():
                # The methods of Path raise an error for a link without permission.
                if os.path.isdir(path):  # noqa: PTH112
                    links.append(path)
                elif os.path.exists(path) or _SUFFIX.search(path.name):  # noqa: PTH110
                    files.append(path)  # a record whose file is missing counts as an unreadable one
                else:
                    not_listed.append(path)
            elif entry.is_dir():
                folders.append(path)
            else:
                files.append(path)
    files.sort()
    kinds = {path: kind_of(path) for path in files}
    headers, signals, others, unfinished = (
        tuple(path for path in files if kinds[path] in suffixes)
        for suffixes in ((HEADER_SUFFIX,), SIGNAL_SUFFIXES, OTHER_SUFFIXES, (UNFINISHED_SUFFIX,))
    )
    readable = {without_suffix(path) for path in (*headers, *others)}
    unread = tuple(path for path in files if kinds[path] in UNREAD_FORMATS and path.with_suffix("") not in readable)
    return RecordFiles(headers, signals, others, unfinished, unread, tuple(sorted(not_listed)))


def kind_of(path: Path) -> str:
    """Return the suffix that decides how a file is read, in lower case; for DICOM files, even if they have no suffix.

    Archives name these files IM0001, or with numbers such as 1.2.840.10008.1. DICOMDIR, their index, is not a record.
    """
    suffix = path.suffix.lower()
    if suffix in _KNOWN_SUFFIXES or path.name.upper() == "DICOMDIR":
        return suffix
    return DICOM_SUFFIX if is_dicom(path) else suffix


def counted_kinds(paths: Iterable[Path]) -> str:
    """Return the number of files of each kind in words, such as "2 .npy, 1 .scp"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(map(kind_of, paths)).most_common())


def is_dicom(path: Path) -> bool:
    """Return whether a file begins like a DICOM file; False if it cannot be read."""
    try:
        require_regular_file(path.stat())
        with path.open("rb") as file:
            return file.read(_DICOM_MARK.stop)[_DICOM_MARK] == b"DICM"
    except (DataError, OSError):
        return False


def without_suffix(path: Path) -> Path:
    """Return a path without the suffix of a file of records; a last number as in 1.2.840.10008.1 is not a suffix."""
    return path.with_suffix("") if path.suffix.lower() in _KNOWN_SUFFIXES else path


def read_header_bytes(path: Path) -> bytes:
    """Return the bytes of a header. Raises OSError, and DataError for a device, a pipe and a file that is too large."""
    # Checked before the file is opened, because opening a device may have an effect. Without O_NONBLOCK, opening a pipe
    # waits for a process that writes to it. The open file is checked again, because it may have been replaced in
    # between.
    require_regular_file(os.stat(path))  # noqa: PTH116 -- a scan reads 100,000 headers, and Path takes twice as long
    file = os.open(path, _READ_AT_ONCE)
    try:
        require_regular_file(os.fstat(file))
        raw = b""
        while len(raw) <= MAX_HEADER_BYTES and (piece := os.read(file, _PIECE)):
            raw += piece
    finally:
        os.close(file)
    if len(raw) > MAX_HEADER_BYTES:
        raise DataError(f"expected at most {MAX_HEADER_BYTES:,} bytes, got more; is it a header?")
    return raw


def require_regular_file(state: os.stat_result) -> None:
    """Raise DataError for a device, which may be read without end, and for a pipe, which may wait forever."""
    if not stat.S_ISREG(state.st_mode):
        raise DataError("expected a regular file, got a device, a pipe, a socket or a folder")


def present_file(path: Path) -> Path:
    """Return the path of the existing file; `path` itself if there is none.

    The suffix, or the whole name, may be in another case, as on case-insensitive disks. A name without a suffix may
    mean a signal.
    """
    if path.is_file():
        return path
    for suffix in [path.suffix] if path.suffix else SIGNAL_SUFFIXES:
        # The folder is not listed, because it may contain thousands of records. The number of cases doubles with each
        # letter, so a longer suffix, which no signal format has, is tried in one case only.
        letters = [{letter.lower(), letter.upper()} if len(suffix) <= MAX_SUFFIX else letter for letter in suffix]
        cases = ["".join(case) for case in product(*letters)]
        for stem, case in product(dict.fromkeys((path.stem, path.stem.upper(), path.stem.lower())), sorted(cases)):
            candidate = path.with_name(stem + case)
            if candidate.is_file():
                return candidate
    return path


def record_name(text: str) -> str:
    """Return the name of a record without spaces around it and without the suffix of a header or signal."""
    return _SUFFIX.sub("", text.strip())


def table_name(text: str) -> str:
    """Return the name of a record as a table writes it: with slashes, and without suffix and spaces around it."""
    name = record_name(text).replace("\\", "/").removeprefix("./")
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in OTHER_SUFFIXES else name


def unsharded_folder(path: PurePath) -> str:
    """Return the folder of a file without its shards, for a path relative to the root: "training/georgia" or "."."""
    parts = list(path.parent.parts)
    while parts and _SHARD.fullmatch(parts[-1]):
        parts.pop()
    return PurePath(*parts).as_posix()


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk of a folder. The folder need not exist yet."""
    # The nearest existing parent is on the same disk as the folder that will be created below it.
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(existing).free
