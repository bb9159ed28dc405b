"""Find the records that a table names in folder trees: by path, by name, or by their id in a file of many records."""

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from kdkit import DataError
from kdkit_ecg.datasets.exclusions import ExcludedRecords, ExclusionReason
from kdkit_ecg.datasets.label_table import LabelRow
from kdkit_ecg.records.array_files import ArrayFormat
from kdkit_ecg.records.open_file import best_files, open_file
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.utils.record_files import (
    CSV_SUFFIX,
    HDF5_SUFFIXES,
    NUMBERS_SUFFIXES,
    find_record_files,
    without_suffix,
)


class RecordIndex:
    """The files of records in `excluded.folders`, by their path without suffix and by their name.

    arrays: describes files of numbers, see `Records`. unmatched: the patterns in it that match none of them.
    """

    def __init__(
        self, excluded: ExcludedRecords, arrays: ArrayFormat | Mapping[str, ArrayFormat] | None, table: Path
    ) -> None:
        self.excluded = excluded
        formats = {"*": arrays} if isinstance(arrays, ArrayFormat) else arrays or {}
        self._formats: dict[Path, ArrayFormat] = {}  # of files of numbers
        self._files: dict[Path, Path] = {}  # real path -> file of each record
        # The files by path below their folder, and by name: several if folders share them.
        self._by_path: dict[str, list[Path]] = {}
        self._by_name: dict[str, list[Path]] = {}
        self._signals: dict[str, Path] = {}  # without a header, such as files of MATLAB, by either
        self.unmatched = set() if isinstance(arrays, ArrayFormat) else set(formats)
        real_folder, table = cache(Path.resolve), table.resolve()
        for folder in excluded.folders:
            files = find_record_files(folder)
            excluded.add_files(files)
            for path in files.without_header():
                stem = without_suffix(path)
                self._signals |= {_composed(stem.name): path, _composed(stem.relative_to(folder).as_posix()): path}
            others = [path for path in files.others if path.suffix.lower() != CSV_SUFFIX or path.resolve() != table]
            for path in best_files([*files.headers, *others]):
                stem = without_suffix(path)
                if path.suffix.lower() in NUMBERS_SUFFIXES:
                    below = _composed(path.relative_to(folder).as_posix())
                    for pattern in (pattern for pattern in formats if fnmatchcase(below, _composed(pattern))):
                        self._formats.setdefault(path, formats[pattern])  # of the first pattern that matches
                        self.unmatched.discard(pattern)
                # One of the folders may be inside another, or contain a link to it.
                file = self._files.setdefault(real_folder(path.parent) / path.name, path)
                self._by_path.setdefault(_composed(stem.relative_to(folder).as_posix()), []).append(file)
                if file is path:
                    self._by_name.setdefault(_composed(stem.name), []).append(file)

    def find(self, rows: Mapping[str, LabelRow]) -> Iterator[tuple[str, RecordSource]]:
        """Yield the records of a table that are found, with their names in it.

        Records that cannot be read, and those without a row, are added to `excluded`. Raises DataError for a name that
        several files have, for a file that several rows name, and for files of numbers without an ArrayFormat.
        """
        used: dict[Path, str] = {}  # file -> its name in the table
        parts: set[Path] = set()  # headers of segments, which are not records
        for record, row in rows.items():
            path = self._path(record, row.database)
            if path is None:
                continue
            if path in used:
                raise DataError(
                    f"the table of labels names the file {path} twice, as {used[path]!r} and {record!r}; remove one of "
                    "the rows"
                )
            used[path] = record
            source = self._open(path)
            if source:
                parts.update(path.with_name(name) for name in source.files)
                yield record, source
        unused = [path for path in self._files.values() if path not in used and path not in parts]
        named = set(used.values())
        lost = {record: row for record, row in rows.items() if record not in named}
        self.excluded.unread += [self._signals[name] for name in map(_composed, lost) if name in self._signals]
        # An array that no row names may be a stack of records that rows name; a CSV file may be any table.
        for path in unused:
            if path.suffix.lower() not in NUMBERS_SUFFIXES:
                self.excluded.add(ExclusionReason.NO_ROW, path)
            elif path.suffix.lower() != CSV_SUFFIX:
                yield from self._find_in_stack(path, lost, required=not used)

    @property
    def names(self) -> list[str]:
        """The paths of all files of records below their folder, without suffix."""
        return list(self._by_path)

    def _path(self, record: str, database: str) -> Path | None:
        name = _composed(record)
        paths = list(dict.fromkeys(self._by_path.get(name) or self._by_name.get(name) or []))
        # Of several files with one name, the one in the folder of its database, as for the Challenges.
        paths = [path for path in paths if database in path.parts[:-1]] if len(paths) > 1 and database else paths
        if len(paths) > 1:
            raise DataError(
                f"the table of labels names the record {record!r}, but there are {len(paths)}, such as {paths[0]} and "
                f"{paths[1]}; write their paths below the folder, or pass a folder above both if the paths are equal"
            )
        return paths[0] if paths else None

    def _open(self, path: Path) -> RecordSource | None:
        arrays = self._formats.get(path)
        if path.suffix.lower() in NUMBERS_SUFFIXES and arrays is None:
            open_file(path)  # raises an error with the option that is needed
        try:
            sources = open_file(path, arrays)
            if len(sources) != 1:
                names = ", ".join(f"{path.stem}/{source.name}" for source in sources[:2])
                raise DataError(f"it has {len(sources)} records; name each in the table of labels, such as {names}")
        except DataError as error:
            self.excluded.add(ExclusionReason.HEADER, path, cause=error)
            return None
        return sources[0]

    def _find_in_stack(
        self, path: Path, rows: Mapping[str, LabelRow], *, required: bool
    ) -> Iterator[tuple[str, RecordSource]]:
        """Yield the records of a stack that rows name. required: raise the error that its format is not described."""
        arrays = self._formats.get(path)
        if not rows or (arrays is None and path.suffix.lower() not in HDF5_SUFFIXES):
            return
        try:
            sources = open_file(path, arrays)
        except DataError as error:
            if arrays is None and required:
                raise
            self.excluded.add(ExclusionReason.HEADER, path, cause=error)
            return
        for source in sources:
            # "0" for the only stack, and "signals/0" to distinguish several.
            for record in (source.name, f"{path.stem}/{source.name}"):
                if record in rows:
                    yield record, replace(source, name=record)


def _composed(text: str) -> str:
    """Return a name with one character for each letter and its accents; macOS writes names of files with several."""
    return unicodedata.normalize("NFC", text)
