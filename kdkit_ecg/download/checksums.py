"""Read SHA256SUMS.txt, the list of the files of a release with their checksums."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from kdkit import DataError
from kdkit.errors import did_you_mean
from kdkit.utils.printable import printable
from kdkit.utils.validation import is_device
from kdkit_ecg.utils.record_files import UNFINISHED_SUFFIX

LIST_FILE = "SHA256SUMS.txt"  # of PhysioNet
RECORD_LIST = "MD5SUMS.txt"  # names and sums of a record, without the number of downloads, which its JSON has
OWN_PREFIX = ".kdkit-fetch"  # of the files that fetch creates for itself

LISTS = (LIST_FILE, RECORD_LIST)  # fetch saves one of them in the folder of a release
_RESERVED = tuple(name.casefold() for name in LISTS)

_LINE = re.compile(r"(?P<sum>[0-9a-fA-F]{64})[ \t]+\*?(?P<path>\S.*)")


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """A file of a release: its path below the root, and the SHA-256 or MD5 of its bytes in lower-case hex.

    size: in bytes, None if the list has none. url: its address, "" for the path below that of the list.
    """

    path: str
    sum: str
    size: int | None = None
    url: str = ""

    @property
    def algorithm(self) -> str:
        """The name of the checksum in hashlib."""
        return "md5" if len(self.sum) == 32 else "sha256"

    @property
    def names(self) -> list[str]:
        """The texts that a pattern may match: the path, and path and name of each folder above the file."""
        folders = [folder for folder in PurePosixPath(self.path).parents if folder.parts]
        return [self.path, *(folder.as_posix() for folder in folders), *(folder.name for folder in folders)]

    def below(self, folder: Path) -> Path:
        """Return the path of the finished file."""
        return folder.joinpath(*self.path.split("/"))

    def part(self, folder: Path) -> Path:
        """Return the path of the file until it is complete and verified."""
        path = self.below(folder)
        return path.with_name(path.name + UNFINISHED_SUFFIX)


def parse_list(text: str, source: str) -> list[ReleaseFile]:
    """Return the files in a list, sorted by path; `source` is its address, for error messages.

    Raises DataError for a line without a checksum and a path, for two checksums of one path, for a path that is outside
    the folder or reserved for fetch, and for two paths that are one file on a case-insensitive disk.
    """
    sums: dict[str, str] = {}
    listed: dict[str, str] = {}  # path -> where it is listed
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise DataError(
                f"{source}, line {number}: expected a SHA-256 and a path, got {line[:60]!r}; is the address right?"
            )
        path = match["path"].removeprefix("./")
        require_safe(path, listed.setdefault(path, f"{source}, line {number}"))
        if sums.setdefault(path, match["sum"].lower()) != match["sum"].lower():
            raise DataError(f"{source}, line {number}: {path!r} is listed twice with different checksums")
    if not sums:
        raise DataError(f"{source} lists no file; is the address right?")
    require_distinct(listed)
    return [ReleaseFile(path, sums[path]) for path in sorted(sums)]


def require_safe(path: str, line: str) -> None:
    """Raise DataError for a path that is outside the folder or reserved for fetch, on any system. line: in the list."""
    # Compared as case-insensitive disks do, and Windows, which drops dots and spaces at the end of a name.
    unsafe = any(
        not part.rstrip(". ")
        or part != part.rstrip(". ")
        or part.casefold().startswith(OWN_PREFIX)
        or part.casefold().endswith(UNFINISHED_SUFFIX)
        or is_device(part)
        for part in path.split("/")
    )
    # A backslash or a colon could leave the folder on Windows. Control characters are not printable.
    is_clean = printable(path) == path and not re.search(r"[\\:]", path)
    if unsafe or not is_clean or path.casefold() in _RESERVED:
        raise DataError(f"{line}: {path!r} is outside the folder or a reserved name; no file is fetched")


def require_distinct(listed: Mapping[str, str]) -> None:
    """Raise DataError for two paths that are one file on a case-insensitive disk.

    listed: path -> where it is listed.
    """
    on_disk: dict[str, str] = {}  # a path as such disks compare it -> the path
    for path, line in listed.items():
        same = on_disk.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if same != path:
            raise DataError(f"{line}: {path!r} and {same!r} are the same file on some disks; no file is fetched")


def select_files(files: Sequence[ReleaseFile], only: Sequence[str]) -> list[ReleaseFile]:
    """Return the files that match any of the patterns, or all files if there is no pattern.

    A pattern (with *, ? and [...]) matches the path of a file, or the path or name of a folder that contains it.
    Raises DataError for a pattern that matches no file.
    """
    if not only:
        return list(files)
    selected: set[ReleaseFile] = set()
    for pattern in only:
        matching = {file for file in files if any(fnmatchcase(name, pattern.strip("/")) for name in file.names)}
        if not matching:
            folders = {PurePosixPath(file.path).parent.as_posix() for file in files} - {"."}
            raise DataError(f"--only {pattern!r} matches no file in the list; {did_you_mean(pattern, folders)}")
        selected |= matching
    return [file for file in files if file in selected]  # in the order of the list
