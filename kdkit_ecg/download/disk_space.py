"""Estimate the size of files before the download, and check that the disk has enough space."""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from threading import Event

import requests

from kdkit import DataError
from kdkit_ecg.download.checksums import ReleaseFile
from kdkit_ecg.download.responses import TIMEOUT
from kdkit_ecg.download.threads import run_in_threads
from kdkit_ecg.download.transfer import address
from kdkit_ecg.utils.files import format_bytes, free_space, unsharded_folder

SAMPLE = 16  # files of each kind whose size is requested
BLOCK = 4096  # bytes: most disks allocate space for a file in multiples of this


def expected_size(session: requests.Session, base: str, files: Sequence[ReleaseFile], jobs: int) -> tuple[int, bool]:
    """Return the estimated bytes of the files, and whether it includes a size for every kind of file.

    The list has no sizes. Therefore the server is asked (HEAD) for the sizes of up to SAMPLE random files of each kind,
    which is a folder and a suffix, with a fixed seed. The other files count with the mean size of their kind.
    """
    kinds: dict[tuple[str, str], list[ReleaseFile]] = defaultdict(list)
    for file in files:
        path = PurePosixPath(file.path)
        kinds[unsharded_folder(path), path.suffix].append(file)
    generator = random.Random(0)
    samples = {kind: generator.sample(members, min(SAMPLE, len(members))) for kind, members in kinds.items()}
    sizes: dict[ReleaseFile, int] = {}
    all_samples = [file for sample in samples.values() for file in sample]

    def request_size(file: ReleaseFile) -> int | None:
        response = session.head(address(base, file), allow_redirects=True, timeout=TIMEOUT)
        length = response.headers.get("Content-Length", "")
        return int(length) if response.ok and length.isdecimal() else None

    for file, size in run_in_threads(request_size, all_samples, jobs, Event()):
        # An estimate is not worth retries: a failed request, whose result is an exception, counts as no size.
        if isinstance(size, int):
            sizes[file] = size
    total, complete = 0.0, True
    for kind, sample in samples.items():
        known_sizes = [sizes[file] for file in sample if file in sizes]
        complete = complete and bool(known_sizes)
        total += len(kinds[kind]) * sum(known_sizes) / len(known_sizes) if known_sizes else 0
    return round(total), complete


def require_space(folder: Path, size: int, files: int) -> None:
    """Raise DataError if this number of files, with `size` bytes in total, does not fit on the disk of the folder."""
    needed = size + files * BLOCK // 2  # on average, half of the last block of a file is unused
    free = free_space(folder)
    if needed > free:
        raise DataError(
            f"{files:,} files of about {format_bytes(size)} need {format_bytes(needed)} on the disk, but {folder} has "
            f"{format_bytes(free)} free; free some space, use a folder on another disk, or select files with --only"
        )
