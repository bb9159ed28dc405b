"""Reserve a folder for one release, and for one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from kdkit import DataError
from kdkit.utils.files import is_file
from kdkit.utils.locks import FileLock
from kdkit_ecg.download.checksums import LISTS, OWN_PREFIX


def require_no_own_links(folder: Path) -> None:
    """Raise DataError if a file that fetch creates for itself is a link, because its target would be overwritten."""
    links = [path for path in (*folder.glob(f"{OWN_PREFIX}*"), *(folder / name for name in LISTS)) if path.is_symlink()]
    if links:
        raise DataError(f"{links[0]} is a link, and links are not followed; delete it, or use another folder")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Prevent other processes from writing the same .part files. The lock of a killed process is released."""
    lock = FileLock(folder / f"{OWN_PREFIX}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"another kdkit ecg fetch is running in {folder}; wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()


def require_same_release(folder: Path, name: str, text: str) -> None:
    """Raise DataError if the folder contains the list of another release than `text`. name: of the file of the list."""
    for path in [folder / list_name for list_name in LISTS]:
        # Compared word by word: line endings may have been converted.
        words = path.read_text(encoding="utf-8", errors="replace").split() if is_file(path) else None
        if words is None or (path.name == name and words == text.split()):
            continue
        raise DataError(f"{path} is the list of another release; use a separate folder, or delete that file")
