"""Request the sizes of files before the download, to limit what is written and to check that the disk has space."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event

import requests

from kdkit import DataError
from kdkit.utils.reprs import format_bytes
from kdkit_ecg.download.checksums import ReleaseFile
from kdkit_ecg.download.responses import TIMEOUT, content_length
from kdkit_ecg.download.threads import run_in_threads
from kdkit_ecg.download.transfer import address
from kdkit_ecg.utils.record_files import free_space, unsharded_folder

SAMPLE = 16  # files of each kind whose size is requested
BLOCK = 4096  # bytes: most disks allocate space for a file in multiples of this

# The most bytes of a file whose size was not requested: a multiple of the largest known file of its kind, or a minimum,
# whichever is larger; and a limit if no size of its kind is known.
MAX_MULTIPLE, MAX_SMALL, MAX_UNKNOWN = 100, 1 << 26, 1 << 30

_Kind = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedSizes:
    """Sizes in bytes according to the server.

    total: of all files, an estimate. complete: the estimate includes every kind of file. known: by file.
    """

    total: int
    complete: bool
    known: Mapping[ReleaseFile, int]
    _largest: Mapping[_Kind, int]

    def most_bytes(self, file: ReleaseFile) -> int:
        """Return the size at which the transfer of a file is stopped: a larger file is not the one in the list."""
        if file.size is not None:
            return file.size
        # Some servers respond to HEAD with a size of 0.
        if self.known.get(file):
            return self.known[file]
        largest = self._largest.get(_kind_of(file))
        return MAX_UNKNOWN if largest is None else max(MAX_SMALL, MAX_MULTIPLE * largest)


def expected_sizes(session: requests.Session, base: str, files: Sequence[ReleaseFile], jobs: int) -> ExpectedSizes:
    """Return the sizes of the files.

    A list of checksums has no sizes. HEAD requests give those of up to SAMPLE random files of each kind, which is a
    folder and a suffix, with a fixed seed. Other files count with the mean size of their kind.
    """
    kinds: dict[_Kind, list[ReleaseFile]] = defaultdict(list)
    for file in [file for file in files if file.size is None]:
        kinds[_kind_of(file)].append(file)
    generator = random.Random(0)
    samples = {kind: generator.sample(members, min(SAMPLE, len(members))) for kind, members in kinds.items()}
    sizes: dict[ReleaseFile, int] = {}
    all_samples = [file for sample in samples.values() for file in sample]

    def request_size(file: ReleaseFile) -> int | None:
        response = session.head(address(base, file), allow_redirects=True, timeout=TIMEOUT)
        return content_length(response) if response.ok else None

    for file, size in run_in_threads(request_size, all_samples, jobs, Event()):
        # An estimate is not worth retries: a failed request, whose result is an exception, counts as no size.
        if isinstance(size, int):
            sizes[file] = size
    total, largest = float(sum(file.size or 0 for file in files)), {}
    for kind, sample in samples.items():
        known_sizes = [sizes[file] for file in sample if file in sizes]
        if known_sizes:
            total += len(kinds[kind]) * sum(known_sizes) / len(known_sizes)
            largest[kind] = max(known_sizes)
    return ExpectedSizes(total=round(total), complete=len(largest) == len(kinds), known=sizes, _largest=largest)


def require_space(folder: Path, size: int, files: int) -> None:
    """Raise DataError if this number of files, with `size` bytes in total, does not fit on the disk of the folder."""
    needed = size + files * BLOCK // 2  # on average, half of the last block of a file is unused
    free = free_space(folder)
    if needed > free:
        raise DataError(
            f"{files:,} files of about {format_bytes(size)} need {format_bytes(needed)} on the disk, but {folder} has "
            f"{format_bytes(free)} free; free some space, use a folder on another disk, or select files with --only"
        )


def _kind_of(file: ReleaseFile) -> _Kind:
    path = PurePosixPath(file.path)
    return unsharded_folder(path), path.suffix
