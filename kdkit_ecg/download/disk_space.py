"""Ask how large files are before they are fetched, and whether the disk has room for them."""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from threading import Event

import requests

from kdkit import DataError
from kdkit_ecg.download.checksums import ReleaseFile
from kdkit_ecg.download.responses import TIMEOUT
from kdkit_ecg.download.threads import in_parallel
from kdkit_ecg.download.transfer import address
from kdkit_ecg.records.database import database_of
from kdkit_ecg.utils.disk import free_space, shown

SAMPLE = 16  # files of a kind that are asked for their size
BLOCK = 4096  # bytes that a file takes at least, and in multiples of which it grows, on most disks


def expected_size(session: requests.Session, base: str, files: Sequence[ReleaseFile], jobs: int) -> tuple[int, bool]:
    """Return about how many bytes the files are, and whether all kinds of them are known.

    The list has no sizes. So the server is asked (HEAD) for those of SAMPLE files of each database and suffix, chosen
    at random with a fixed seed; the others are taken to be as large as these on average.
    """
    kinds: dict[tuple[str, str], list[ReleaseFile]] = defaultdict(list)
    for file in files:
        path = PurePosixPath(file.path)
        kinds[database_of(path), path.suffix].append(file)
    dice = random.Random(0)
    asked = {kind: dice.sample(each, min(SAMPLE, len(each))) for kind, each in kinds.items()}
    sizes: dict[ReleaseFile, int] = {}
    everyone = [file for sample in asked.values() for file in sample]
    for file, size in in_parallel(lambda each: _size(session, base, each), everyone, jobs, Event()):
        if isinstance(size, int):
            sizes[file] = size
    total, known = 0.0, True
    for kind, sample in asked.items():
        found = [sizes[file] for file in sample if file in sizes]
        known = known and bool(found)
        total += len(kinds[kind]) * sum(found) / len(found) if found else 0
    return round(total), known


def require_space(folder: Path, size: int, files: int) -> None:
    """Raise DataError where that many files of together this size, in bytes, do not fit on the disk of the folder."""
    needed = size + files * BLOCK // 2  # the last block of a file is half empty on average
    free = free_space(folder)
    if needed > free:
        raise DataError(
            f"{files:,} files of about {shown(size)} need {shown(needed)} on the disk, but {folder} has {shown(free)} "
            "free; make room, give a folder on another disk, or take a part with --only"
        )


def _size(session: requests.Session, base: str, file: ReleaseFile) -> int | None:
    try:
        answer = session.head(address(base, file), allow_redirects=True, timeout=TIMEOUT)
    except requests.RequestException:
        return None
    length = answer.headers.get("Content-Length", "")
    return int(length) if answer.ok and length.isdecimal() else None
