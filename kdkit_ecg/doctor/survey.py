"""Examine all records in a folder, in several processes, and then hold them against each other."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.forkserver import ensure_running, set_forkserver_preload
from pathlib import Path, PurePath

from kdkit import DataError
from kdkit_ecg.databases import database_of
from kdkit_ecg.doctor.checkup import examine
from kdkit_ecg.doctor.copies import mark_names, mark_twins
from kdkit_ecg.doctor.findings import Examined, Reason
from kdkit_ecg.headers import read_header

SIGNALS = (".mat", ".dat")
CHUNK = 8  # records that a process gets at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found in a folder: every record, by path, and files that a broken-off fetch left behind."""

    folder: Path
    records: tuple[Examined, ...]
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
    records = []
    for record in _examined(folder, paths, jobs):
        records.append(record)
        examined()
    records += _without_header(folder, paths, signals)
    mark_names(folder, records)
    mark_twins(folder, records)
    return Survey(
        folder=folder,
        records=tuple(sorted(records, key=lambda each: each.path)),
        unfinished=sum(1 for _ in folder.rglob("*.part")),
    )


def _examined(folder: Path, paths: Sequence[Path], jobs: int) -> Iterator[Examined]:
    work = partial(examine, folder)
    if jobs == 1 or len(paths) <= CHUNK:
        yield from map(work, paths)
        return
    # A fork of this process would take along its threads' locks; a server to fork from imports everything only once.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        _start_server()
    try:
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            try:
                yield from pool.map(work, paths, chunksize=CHUNK)
            finally:
                pool.shutdown(cancel_futures=True)
    except BrokenProcessPool as error:
        raise DataError("a process that read records was ended from outside; try fewer --jobs") from error


def _start_server() -> None:
    """Start the process that the others are forked from, all of them deaf to Ctrl-C, which reaches every process.

    This one hears it and ends them; each of them would print a traceback.
    """
    set_forkserver_preload([examine.__module__])
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


def _without_header(folder: Path, paths: Sequence[Path], signals: Sequence[Path]) -> Iterator[Examined]:
    """Yield a record for each signal file that belongs to none: it has no header beside it, and none names it."""
    headers = {path.with_suffix("") for path in paths}
    named = {place for path in paths for place in _files(path)}
    for path in signals:
        if path.with_suffix("") not in headers and path not in named:
            relative = path.relative_to(folder)
            record = Examined(
                path=relative.with_suffix("").as_posix(), database=database_of(PurePath(relative)), findings=[]
            )
            record.add(Reason.NO_HEADER, path.name)
            yield record


def _files(path: Path) -> list[Path]:
    try:
        return [path.with_name(name) for name in read_header(path).files]
    except DataError:
        return []
