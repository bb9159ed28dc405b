"""Examine all records in a folder in several processes, then compare them with each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdkit import DataError
from kdkit_ecg.doctor.duplicates import mark_duplicate_names, mark_duplicate_signals
from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.record import examine
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.open_file import best_files
from kdkit_ecg.utils.processes import run_in_processes
from kdkit_ecg.utils.record_files import CSV_SUFFIX, NUMBERS_SUFFIXES, counted_kinds, find_record_files, kind_of

MIN_RECORDS = 8  # up to this number, records are examined in this process


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All records in a folder, sorted by path, and the number of files left by an interrupted fetch.

    not_listed: subfolders that cannot be read and broken links, relative to the folder. numbers: files of numbers,
    NumPy and HDF5, which do not specify their rate and leads. unread: ECG files in unsupported formats.
    """

    folder: Path
    records: tuple[RecordReport, ...]
    unfinished: int
    not_listed: tuple[str, ...]
    numbers: tuple[Path, ...]
    unread: tuple[Path, ...]

    @property
    def bad(self) -> int:
        """The number of bad records."""
        return sum(record.bad for record in self.records)


def survey(
    folder: Path,
    jobs: int,
    on_start: Callable[[int], None],
    on_record: Callable[[], None],
    *,
    leads: Sequence[str] = LEADS,
    own_labels: bool = False,
) -> Survey:
    """Examine every record in a folder tree with `jobs` processes. leads, own_labels: see `examine`.

    on_start is called with the number of records, on_record after each of them.
    Raises DataError if there is no record.
    """
    files = find_record_files(folder)
    # A CSV file may be any table.
    used = sorted(path for path in best_files([*files.headers, *files.others]) if path.suffix.lower() != CSV_SUFFIX)
    paths = [path for path in used if kind_of(path) not in NUMBERS_SUFFIXES]
    numbers = [path for path in used if kind_of(path) in NUMBERS_SUFFIXES]
    if not paths and not files.signals:
        others = counted_kinds([*numbers, *files.unread])
        raise DataError(
            f"no WFDB, DICOM, XML or EDF file in {folder} or its subfolders{f' (but {others})' if others else ''}; "
            "expected a folder with a fetched release, or other records"
        )
    on_start(len(paths))
    examine_one = partial(examine, folder, leads=leads, own_labels=own_labels)
    in_this_process = jobs == 1 or len(paths) <= MIN_RECORDS
    results = ((path, examine_one(path)) for path in paths)  # lazy: unused if there are processes
    reports = {}
    for path, report in results if in_this_process else run_in_processes(examine_one, paths, jobs):
        reports[path] = report
        on_record()
    named_by_header = {path.with_name(name) for path, report in reports.items() for name in report.files}
    # In the order of the paths, because processes finish in any order. Headers of segments, which the header of a
    # record names, are not records.
    records = [reports[path] for path in paths if path not in named_by_header]
    for path in files.without_header():
        if path not in named_by_header:
            record = RecordReport.of(folder, path)
            record.add(Reason.NO_HEADER, path.name)
            records.append(record)
    if not own_labels:  # a table of labels may name records by their paths
        mark_duplicate_names(folder, records)
    mark_duplicate_signals(records)
    return Survey(
        folder=folder,
        records=tuple(sorted(records, key=lambda record: record.path)),
        unfinished=len(files.unfinished),
        not_listed=tuple(path.relative_to(folder).as_posix() for path in files.not_listed),
        numbers=tuple(numbers),
        unread=files.unread,
    )
