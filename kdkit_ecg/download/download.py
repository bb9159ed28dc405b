"""Download a release into a folder: read the list, verify existing files, check the space, and fetch in parallel."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from time import monotonic

import requests
from requests.adapters import HTTPAdapter
from rich.console import Console

from kdkit import DataError
from kdkit.utils.files import require_writable, write
from kdkit.utils.reprs import describe_count, format_bytes
from kdkit_ecg.download.backoff import Backoff
from kdkit_ecg.download.checksums import LIST_FILE, RECORD_LIST, ReleaseFile, parse_list, select_files
from kdkit_ecg.download.disk_space import expected_sizes, require_space
from kdkit_ecg.download.lock import lock_folder, require_no_own_links, require_same_release
from kdkit_ecg.download.progress import DownloadProgress
from kdkit_ecg.download.records import parse_records, saved_list
from kdkit_ecg.download.responses import UNCOMPRESSED, TransferError, UnreachableError, fetch_text
from kdkit_ecg.download.threads import run_in_threads
from kdkit_ecg.download.transfer import Transfer
from kdkit_ecg.download.verified_files import VerifiedFiles, file_checksum
from kdkit_ecg.utils.record_files import free_space

# After this many failures in a row, the server is down, and a hundred thousand more requests are pointless.
MAX_UNREACHABLE = 20

MAX_NAMES = 10  # failed files to name


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadRequest:
    """base: the address that the paths in the list are relative to. only: patterns of paths. jobs: files at a time.

    records: records of Zenodo or figshare, with lists below `base`, instead of a list of checksums.
    """

    base: str
    folder: Path
    records: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    jobs: int = 8
    verify: bool = False
    dry_run: bool = False

    @property
    def list_name(self) -> str:
        """The name of the file in the folder that has the list of the release."""
        return RECORD_LIST if self.records else LIST_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadReport:
    """Result of a download. present and fetched: numbers of files. size: bytes fetched. failed: path -> reason."""

    present: int
    fetched: int
    size: int
    seconds: float
    failed: dict[str, str]

    @property
    def summary(self) -> str:
        """One line about the files and bytes that were fetched."""
        # The speed of a download of less than a second is meaningless.
        speed = f", {format_bytes(self.size / self.seconds)}/s" if self.size > 0 and self.seconds >= 1 else ""
        fetched = describe_count(self.fetched, "file")
        return (
            f"{fetched} fetched, {format_bytes(self.size)} in {self.seconds:.0f} s{speed}; "
            f"{self.present:,} were already correct"
        )

    @property
    def failures(self) -> str:
        """The error message about the files that failed."""
        lines = [f"  {path}: {reason}" for path, reason in list(self.failed.items())[:MAX_NAMES]]
        if len(self.failed) > MAX_NAMES:
            lines.append(f"  and {len(self.failed) - MAX_NAMES:,} more")
        title = f"{describe_count(len(self.failed), 'file')} could not be fetched:"
        advice = "all fetched files are kept; run the same command again to retry these"
        return "\n".join([title, *lines, advice])


def fetch(request: DownloadRequest, console: Console) -> DownloadReport:
    """Fetch the requested files that the folder lacks, and print the progress to the console.

    Raises DataError if no file can be fetched: there is no list, the list contains unsafe paths, the disk is too full,
    another process is fetching into the folder, or the server is down. The report contains individual files that
    failed.
    """
    if not re.match("https?://.", request.base):
        raise DataError(f"expected an address such as https://physionet.org/..., got {request.base!r}")
    request = replace(request, base=request.base.rstrip("/") + "/")
    try:
        if not request.dry_run:
            require_writable(request.folder)
        with requests.Session() as session:
            session.headers.update(UNCOMPRESSED)
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(pool_maxsize=request.jobs))  # one connection per thread
            sources = [request.base + name for name in request.records or (LIST_FILE,)]
            texts = [fetch_text(session, source) for source in sources]
            all_files = parse_records(texts, sources) if request.records else parse_list(texts[0], sources[0])
            text = saved_list(all_files) if request.records else texts[0]
            files = select_files(all_files, request.only)
            require_no_own_links(request.folder)  # before anything is read or written
            require_same_release(request.folder, request.list_name, text)
            if request.dry_run:
                return _fetch_missing(request, files, session, console)
            request.folder.mkdir(parents=True, exist_ok=True)
            with lock_folder(request.folder):
                return _fetch_missing(request, files, session, console, text)
    except OSError as error:
        raise DataError(f"{request.folder} cannot be written: {error}") from error


def _fetch_missing(
    request: DownloadRequest, files: Sequence[ReleaseFile], session: requests.Session, console: Console, text: str = ""
) -> DownloadReport:
    """Fetch the files that are missing or wrong; `text` is the list, to be saved in the folder."""
    missing = _find_missing(request, files, console)
    present = len(files) - len(missing)
    # Bytes of interrupted downloads count as done in the progress bar.
    resumed = sum(part.stat().st_size for file in missing if (part := file.part(request.folder)).is_file())
    sizes = expected_sizes(session, request.base, missing, request.jobs)
    console.print(
        f"{len(files):,} files in the list, {present:,} already correct, {len(missing):,} to fetch: "
        f"{'about' if sizes.complete else 'unknown size, at least'} {format_bytes(max(0, sizes.total - resumed))}; "
        f"{format_bytes(free_space(request.folder))} free",
        soft_wrap=True,
    )
    if request.dry_run:
        return DownloadReport(present=present, fetched=0, size=0, seconds=0.0, failed={})
    require_space(request.folder, max(0, sizes.total - resumed), len(missing))
    write(request.folder / request.list_name, text)
    progress = DownloadProgress(console, len(missing), sizes.total if sizes.complete else None, resumed)
    transfer = Transfer(
        session=session,
        base=request.base,
        folder=request.folder,
        backoff=Backoff(Event()),
        most_bytes=sizes.most_bytes,
        on_bytes=progress.add_bytes,
    )
    return _transfer_all(request, missing, present, transfer, progress)


def _find_missing(request: DownloadRequest, files: Sequence[ReleaseFile], console: Console) -> list[ReleaseFile]:
    """Return the files that do not exist or have wrong bytes, and remember those that are correct."""
    verified_files = VerifiedFiles(request.folder)
    correct = set() if request.verify else {file for file in files if verified_files.contains(file)}
    unverified = [file for file in files if file not in correct and file.below(request.folder).is_file()]
    if unverified:
        console.print(f"verifying {len(unverified):,} existing files")
    checksums = run_in_threads(
        lambda file: file_checksum(file.below(request.folder), file.algorithm), unverified, request.jobs, Event()
    )
    for file, checksum in checksums:  # if a file cannot be read, this is an exception, which differs from any checksum
        if checksum == file.sum:
            correct.add(file)
            if not request.dry_run:
                verified_files.add(file)
    return [file for file in files if file not in correct]


def _transfer_all(
    request: DownloadRequest,
    missing: Sequence[ReleaseFile],
    present: int,
    transfer: Transfer,
    progress: DownloadProgress,
) -> DownloadReport:
    start, failed, unreachable = monotonic(), dict[str, str](), 0
    verified_files = VerifiedFiles(request.folder)

    def fetch_one(file: ReleaseFile) -> None:
        transfer.fetch(file)
        verified_files.add(file)  # before the next file, so that an interruption loses nothing

    with progress:
        for file, result in run_in_threads(fetch_one, missing, request.jobs, transfer.backoff.stop):
            progress.add_file()
            if isinstance(result, Exception) and not isinstance(result, TransferError):
                raise result
            if isinstance(result, TransferError):
                failed[file.path] = str(result)
            unreachable = unreachable + 1 if isinstance(result, UnreachableError) else 0
            if unreachable >= MAX_UNREACHABLE:
                raise DataError(
                    f"{MAX_UNREACHABLE} files in a row could not be fetched, the last one because {result}; all "
                    "fetched files are kept, so run the same command again later"
                )
    return DownloadReport(
        present=present,
        fetched=len(missing) - len(failed),
        size=progress.bytes,
        seconds=monotonic() - start,
        failed=failed,
    )
