"""Remember which files have the right checksum, so that the next run does not read all of them again."""

import hashlib
import re
from pathlib import Path
from threading import Lock

from kdkit.utils.files import is_file
from kdkit_ecg.download.checksums import OWN_PREFIX, ReleaseFile

VERIFIED_FILE = f"{OWN_PREFIX}.tsv"
_NUMBER = re.compile("[0-9]{1,20}")  # ASCII digits, and few enough for int()


class VerifiedFiles:
    """A table with a line for each verified file: checksum, size in bytes, time of change in ns, path.

    A line is valid while the file has that size and time. Lines are only appended, each with one write, and the last
    line for a path counts. A file whose line is damaged is verified again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: dict[str, tuple[str, int, int]] = {}
        self._lock = Lock()
        path = folder / VERIFIED_FILE
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if is_file(path) else []:
            cells = line.split("\t")
            if len(cells) == 4 and all(map(_NUMBER.fullmatch, cells[1:3])):
                self._verified[cells[3]] = (cells[0], int(cells[1]), int(cells[2]))

    def contains(self, file: ReleaseFile) -> bool:
        """Return whether the file was verified and has not changed since. Does not read the file."""
        return self._verified.get(file.path) == (file.sum, *_size_and_time(file.below(self.folder)))

    def add(self, file: ReleaseFile) -> None:
        """Remember that the file is correct in its present state."""
        size, time = _size_and_time(file.below(self.folder))
        with self._lock:
            self._verified[file.path] = (file.sum, size, time)
            with (self.folder / VERIFIED_FILE).open("a", encoding="utf-8") as table:
                table.write(f"{file.sum}\t{size}\t{time}\t{file.path}\n")


def file_checksum(path: Path, algorithm: str) -> str:
    """Return the checksum of a file in lower-case hex."""
    with path.open("rb") as file:
        # An MD5, which some lists have, detects damage but not an attack.
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
        return digest.hexdigest()


def _size_and_time(path: Path) -> tuple[int, int]:
    """Return size in bytes and time of change in ns, (-1, -1) if the file does not exist."""
    try:
        state = path.stat()
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns
