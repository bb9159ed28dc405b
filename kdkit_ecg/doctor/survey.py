"""Examine all records in a folder, in several processes, and then hold them against each other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from kdkit import DataError
from kdkit_ecg.doctor.duplicates import mark_names, mark_twins
from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.record import examine
from kdkit_ecg.records.database import database_of
from kdkit_ecg.records.header import read_header
from kdkit_ecg.utils.processes import in_processes

SIGNALS = (".mat", ".dat")
FEW = 8  # records for which no process is started


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found in a folder: every record, by path, and files that a broken-off fetch left behind."""

    folder: Path
    records: tuple[RecordReport, ...]
    unfinished: int

    @property
    def bad(self) -> int:
        """The number of bad records."""
        return sum(each.bad for each in self.records)


def survey(folder: Path, jobs: int, begun: Callable[[int], None], examined: Callable[[], None]) -> Survey:
    """Examine every record in a folder tree; `begun` is told how many there are, `examined` of each.

    Raises DataError where there is neither a header nor a signal.
    """
    paths = sorted(folder.rglob("*.hea"))
    signals = sorted(path for suffix in SIGNALS for path in folder.rglob(f"*{suffix}"))
    if not paths and not signals:
        raise DataError(
            f"no .hea, .mat or .dat file in {folder} or below; give the folder that a release was fetched to"
        )
    begun(len(paths))
    records = _examined(folder, paths, jobs, examined)
    records += _without_header(folder, paths, signals)
    mark_names(folder, records)
    mark_twins(folder, records)
    return Survey(
        folder=folder,
        records=tuple(sorted(records, key=lambda each: each.path)),
        unfinished=sum(1 for _ in folder.rglob("*.part")),
    )


def _examined(folder: Path, paths: Sequence[Path], jobs: int, examined: Callable[[], None]) -> list[RecordReport]:
    work = partial(examine, folder)
    few = jobs == 1 or len(paths) <= FEW
    found = {}
    for path, record in ((path, work(path)) for path in paths) if few else in_processes(work, paths, jobs):
        found[path] = record
        examined()
    return [found[path] for path in paths]


def _without_header(folder: Path, paths: Sequence[Path], signals: Sequence[Path]) -> Iterator[RecordReport]:
    """Yield a record for each signal file that belongs to none: it has no header beside it, and none names it."""
    headers = {path.with_suffix("") for path in paths}
    named = {place for path in paths for place in _files(path)}
    for path in signals:
        if path.with_suffix("") not in headers and path not in named:
            relative = path.relative_to(folder)
            record = RecordReport(
                path=relative.with_suffix("").as_posix(), database=database_of(PurePath(relative)), findings=[]
            )
            record.add(Reason.NO_HEADER, path.name)
            yield record


def _files(path: Path) -> list[Path]:
    try:
        return [path.with_name(name) for name in read_header(path).files]
    except DataError:
        return []
