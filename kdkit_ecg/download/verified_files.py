"""Remember which files were found right, so that the next run need not read them all again."""

import hashlib
from pathlib import Path
from threading import Lock

from kdkit_ecg.download.checksums import OWN, ReleaseFile

LEDGER = f"{OWN}.tsv"


class VerifiedFiles:
    """A line for each file that was hashed and right: sum, size in bytes, time of change in ns, path.

    A line counts while the file has that size and time. Lines are only added, each in one write, and the last one of a
    path counts; a line that is damaged is a file that is hashed again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[str, int, int]] = {}
        self._lock = Lock()
        path = folder / LEDGER
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
            trials = line.split("\t")
            if len(trials) == 4 and trials[1].isdecimal() and trials[2].isdecimal():
                self._known[trials[3]] = (trials[0], int(trials[1]), int(trials[2]))

    def knows(self, file: ReleaseFile) -> bool:
        """Return whether the file was found right and has not changed since; reads none of it."""
        return self._known.get(file.path) == (file.sum, *_state(file.below(self.folder)))

    def add(self, file: ReleaseFile) -> None:
        """Note that the file, as it is now, is right."""
        size, changed = _state(file.below(self.folder))
        with self._lock:
            self._known[file.path] = (file.sum, size, changed)
            with (self.folder / LEDGER).open("a", encoding="utf-8") as ledger:
                ledger.write(f"{file.sum}\t{size}\t{changed}\t{file.path}\n")


def sum_of(path: Path) -> str:
    """Return the SHA-256 of a file in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> tuple[int, int]:
    """Return size in bytes and time of change in ns, (-1, -1) where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
