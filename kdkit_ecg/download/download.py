"""Fetch a release into a folder: list, look, ask for room, fetch in parallel, and tell what failed."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from time import monotonic

import requests
from requests.adapters import HTTPAdapter
from rich.console import Console

from kdkit import DataError
from kdkit_ecg.download.backoff import Backoff
from kdkit_ecg.download.checksums import LIST, ReleaseFile, choose, read_list
from kdkit_ecg.download.disk_space import expected_size, require_space
from kdkit_ecg.download.lock import alone_in, require_same_release, write_list
from kdkit_ecg.download.progress import Bars
from kdkit_ecg.download.report import DownloadReport
from kdkit_ecg.download.responses import PLAIN, TransferError, UnreachableError, fetch_text
from kdkit_ecg.download.threads import in_parallel
from kdkit_ecg.download.transfer import Transfer
from kdkit_ecg.download.verified_files import VerifiedFiles, sum_of
from kdkit_ecg.utils.disk import free_space, shown

GIVE_UP = 20  # files in a row that the server did not give: it is gone, and the other hundred thousand are not tried


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadRequest:
    """What is fetched where: `base` is the address that the list's paths are below, `only` patterns of paths."""

    base: str
    folder: Path
    only: tuple[str, ...] = ()
    jobs: int = 8
    verify: bool = False
    dry_run: bool = False


def fetch(order: DownloadRequest, console: Console) -> DownloadReport:
    """Fetch what the order says and is not there yet, and tell the console.

    Raises DataError where nothing can be fetched at all: no list, a list that leaves the folder, no room, another
    fetch at work in the folder, a server that is gone. Files that failed one by one are in what is returned.
    """
    if not re.match("https?://.", order.base):
        raise DataError(f"a release is fetched from an address such as https://physionet.org/..., not {order.base!r}")
    order = replace(order, base=order.base.rstrip("/") + "/")
    try:
        return _claimed(order, console)
    except OSError as error:
        raise DataError(f"{order.folder} cannot be written: {error}") from error


def _claimed(order: DownloadRequest, console: Console) -> DownloadReport:
    with _session(order.jobs) as session:
        source = order.base + LIST
        text = fetch_text(session, source)
        files = choose(read_list(text, source), order.only)
        require_same_release(order.folder, text)
        if order.dry_run:
            return _fetch(order, files, session, console)
        order.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(order.folder):
            return _fetch(order, files, session, console, text)


def _fetch(
    order: DownloadRequest, files: Sequence[ReleaseFile], session: requests.Session, console: Console, text: str = ""
) -> DownloadReport:
    missing = _missing(order, files, console)
    there = len(files) - len(missing)
    begun = sum(part.stat().st_size for file in missing if (part := file.part(order.folder)).is_file())
    size, known = expected_size(session, order.base, missing, order.jobs)
    console.print(
        f"{len(files):,} files in the list, {there:,} there and right, {len(missing):,} to fetch: "
        f"{'about' if known else 'size not known, at least'} {shown(max(0, size - begun))}; "
        f"{shown(free_space(order.folder))} free",
        soft_wrap=True,
    )
    if order.dry_run:
        return DownloadReport(there=there, came=0, size=0, seconds=0.0, failed={})
    require_space(order.folder, max(0, size - begun), len(missing))
    write_list(order.folder, text)
    return _transferred(order, missing, there, session, Bars(console, len(missing), size if known else None, begun))


def _transferred(
    order: DownloadRequest, missing: Sequence[ReleaseFile], there: int, session: requests.Session, bars: Bars
) -> DownloadReport:
    began, stop, failed, in_a_row = monotonic(), Event(), dict[str, str](), 0
    ledger = VerifiedFiles(order.folder)
    transfer = Transfer(session=session, base=order.base, folder=order.folder, patience=Backoff(stop), moved=bars.moved)

    def one(file: ReleaseFile) -> None:
        transfer.fetch(file)
        ledger.add(file)

    with bars:
        for file, result in in_parallel(one, missing, order.jobs, stop):
            bars.ended()
            if isinstance(result, Exception) and not isinstance(result, TransferError):
                raise result
            if isinstance(result, TransferError):
                failed[file.path] = str(result)
            in_a_row = in_a_row + 1 if isinstance(result, UnreachableError) else 0
            if in_a_row >= GIVE_UP:
                raise DataError(
                    f"the server failed {GIVE_UP} files in a row, the last with: {result}; what came is kept, so run "
                    "the same command again later"
                )
    return DownloadReport(
        there=there, came=len(missing) - len(failed), size=bars.bytes, seconds=monotonic() - began, failed=failed
    )


def _missing(order: DownloadRequest, files: Sequence[ReleaseFile], console: Console) -> list[ReleaseFile]:
    """Return the files that are not there, or are not right; notes in the ledger which are."""
    ledger = VerifiedFiles(order.folder)
    known = set() if order.verify else {file for file in files if ledger.knows(file)}
    unsure = [file for file in files if file not in known and file.below(order.folder).is_file()]
    if unsure:
        console.print(f"reading {len(unsure):,} files that are there")
    for file, result in in_parallel(lambda each: sum_of(each.below(order.folder)), unsure, order.jobs, Event()):
        if result == file.sum:
            known.add(file)
            if not order.dry_run:
                ledger.add(file)
    return [file for file in files if file not in known]


@contextmanager
def _session(jobs: int) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.headers.update(PLAIN)
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=jobs))
        yield session
