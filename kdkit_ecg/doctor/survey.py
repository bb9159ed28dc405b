"""Examine all records in a folder, in several processes, and then compare them with each other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from kdkit import DataError
from kdkit_ecg.doctor.duplicates import mark_duplicate_names, mark_duplicate_signals
from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.record import examine
from kdkit_ecg.records.header import read_header
from kdkit_ecg.utils.files import unsharded_folder
from kdkit_ecg.utils.processes import run_in_processes

SIGNAL_SUFFIXES = (".mat", ".dat")
MIN_RECORDS = 8  # up to this number, records are examined without starting processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All records in a folder, sorted by path, and the number of files left by an interrupted fetch."""

    folder: Path
    records: tuple[RecordReport, ...]
    unfinished: int

    @property
    def bad(self) -> int:
        """The number of bad records."""
        return sum(record.bad for record in self.records)


def survey(folder: Path, jobs: int, on_start: Callable[[int], None], on_record: Callable[[], None]) -> Survey:
    """Examine every record in a folder tree with `jobs` processes.

    on_start is called with the number of records, on_record after each of them.
    Raises DataError if there is neither a header nor a signal.
    """
    paths = sorted(folder.rglob("*.hea"))
    signals = sorted(path for suffix in SIGNAL_SUFFIXES for path in folder.rglob(f"*{suffix}"))
    if not paths and not signals:
        raise DataError(
            f"no .hea, .mat or .dat file in {folder} or its subfolders; expected a folder with a fetched release"
        )
    on_start(len(paths))
    examine_one = partial(examine, folder)
    in_this_process = jobs == 1 or len(paths) <= MIN_RECORDS
    results = ((path, examine_one(path)) for path in paths)  # lazy: unused if there are processes
    reports = {}
    for path, report in results if in_this_process else run_in_processes(examine_one, paths, jobs):
        reports[path] = report
        on_record()
    records = [reports[path] for path in paths]  # sorted again, since processes finish in any order
    records += _signals_without_header(folder, paths, signals)
    mark_duplicate_names(folder, records)
    mark_duplicate_signals(folder, records)
    return Survey(
        folder=folder,
        records=tuple(sorted(records, key=lambda record: record.path)),
        unfinished=sum(1 for _ in folder.rglob("*.part")),
    )


def _signals_without_header(folder: Path, paths: Sequence[Path], signals: Sequence[Path]) -> Iterator[RecordReport]:
    """Yield a report for each signal file that no header names, and that has no header with its own name."""
    headers = {path.with_suffix("") for path in paths}
    named_by_header: set[Path] = set()
    for path in paths:
        try:
            named_by_header.update(path.with_name(name) for name in read_header(path).files)
        except DataError:
            continue  # an unreadable header names no files
    for path in signals:
        if path.with_suffix("") not in headers and path not in named_by_header:
            relative = path.relative_to(folder)
            record = RecordReport(
                path=relative.with_suffix("").as_posix(), database=unsharded_folder(PurePath(relative)), findings=[]
            )
            record.add(Reason.NO_HEADER, path.name)
            yield record
