"""Read the list of a release, SHA256SUMS.txt: which files there are, and what their bytes must be."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from kdkit import DataError
from kdkit.errors import did_you_mean

LIST = "SHA256SUMS.txt"
PART = ".part"  # what an unfinished file is called
OWN = ".kdkit-fetch"  # what the names of fetch's own files begin with

_LINE = re.compile(r"(?P<sum>[0-9a-fA-F]{64})[ \t]+\*?(?P<path>\S.*)")


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """A file of a release: its path below the root, and the SHA-256 of its bytes in lower-case hex."""

    path: str
    sum: str

    def below(self, folder: Path) -> Path:
        """Return where it goes."""
        return folder.joinpath(*self.path.split("/"))

    def part(self, folder: Path) -> Path:
        """Return where it goes until it is whole and right."""
        place = self.below(folder)
        return place.with_name(place.name + PART)


def read_list(text: str, source: str) -> list[ReleaseFile]:
    """Return the files of a list, by path; `source` is where it came from.

    Raises DataError for a line that is no sum and path, for two sums of one path, and for a path that would leave the
    folder or that fetch keeps for itself.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise DataError(
                f"{source}, line {number}: expected a SHA-256 and a path, but it is {line[:60]!r}; is this the list?"
            )
        path = match["path"].removeprefix("./")
        if not _stays(path):
            raise DataError(f"{source}, line {number}: {path!r} would leave the folder; nothing of it is fetched")
        if sums.setdefault(path, match["sum"].lower()) != match["sum"].lower():
            raise DataError(f"{source}, line {number}: {path!r} is listed twice with two sums")
    if not sums:
        raise DataError(f"{source} lists no file; is the address right?")
    return [ReleaseFile(path, sums[path]) for path in sorted(sums)]


def choose(files: Sequence[ReleaseFile], only: Sequence[str]) -> list[ReleaseFile]:
    """Return the files that any of the patterns names, all where there are none.

    A pattern (with *, ? and [...]) names a file by its path, or all files in a folder by the folder's path or name.
    Raises DataError for a pattern that names none.
    """
    if not only:
        return list(files)
    chosen: set[ReleaseFile] = set()
    for pattern in only:
        named = {each for each in files if any(fnmatchcase(name, pattern.strip("/")) for name in _names(each.path))}
        if not named:
            folders = {PurePosixPath(each.path).parent.as_posix() for each in files} - {"."}
            raise DataError(f"--only {pattern!r} names no file of the list; {did_you_mean(pattern, folders)}")
        chosen |= named
    return [each for each in files if each in chosen]


def _stays(path: str) -> bool:
    """Return whether the path stays in the folder on any system, and is not a name that fetch needs."""
    parts = path.split("/")
    strange = any(not part or part in (".", "..") or part.startswith(OWN) or part.endswith(PART) for part in parts)
    return not strange and not re.search(r"[\\:\x00-\x1f\x7f]", path) and path != LIST


def _names(path: str) -> list[str]:
    folders = [each for each in PurePosixPath(path).parents if each.parts]
    return [path, *(each.as_posix() for each in folders), *(each.name for each in folders)]
