"""Claim a folder for one release, and for one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdkit import DataError
from kdkit_ecg.download.checksums import LIST, OWN


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the same .part files; the system frees the lock of one that was killed."""
    lock = FileLock(folder / f"{OWN}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"another kdkit ecg fetch is at work in {folder}; wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()


def require_same_release(folder: Path, text: str) -> None:
    """Raise DataError where the folder has the list of another release than this one."""
    kept = folder / LIST
    if kept.is_file() and kept.read_text(encoding="utf-8", errors="replace").split() != text.split():
        raise DataError(
            f"{kept} is the list of another release; give each release a folder of its own, or delete that file"
        )


def write_list(folder: Path, text: str) -> None:
    """Keep the list of the release, whole or not at all."""
    new = folder / f"{OWN}.list"
    new.write_text(text, encoding="utf-8", newline="\n")
    new.replace(folder / LIST)
