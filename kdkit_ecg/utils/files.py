"""Find the files of records, group them by folder, measure free disk space, and format numbers of bytes."""

import re
import shutil
from itertools import product
from pathlib import Path, PurePath

# Releases split large folders into shards: g1, g2, ... in the Challenges, and 00000, 01000, ... in PTB-XL.
_SHARD = re.compile(r"g\d+|\d+")

SIGNAL_SUFFIXES = (".mat", ".dat")


def present_file(path: Path) -> Path:
    """Return the path under which a file exists; `path` itself if there is none.

    The suffix, or the whole name, may be in another case, as on disks that do not distinguish cases. A name without a
    suffix may mean a signal.
    """
    if path.is_file():
        return path
    for suffix in [path.suffix] if path.suffix else SIGNAL_SUFFIXES:
        # Not a listing of the folder, which may contain thousands of records.
        cases = ["".join(letters) for letters in product(*({letter.lower(), letter.upper()} for letter in suffix))]
        for stem, case in product(dict.fromkeys((path.stem, path.stem.upper(), path.stem.lower())), sorted(cases)):
            candidate = path.with_name(stem + case)
            if candidate.is_file():
                return candidate
    return path


def unsharded_folder(path: PurePath) -> str:
    """Return the folder of a file without its shards, for a path relative to the root: "training/georgia" or "."."""
    parts = list(path.parent.parts)
    while parts and _SHARD.fullmatch(parts[-1]):
        parts.pop()
    return PurePath(*parts).as_posix()


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk of a folder. The folder need not exist yet."""
    # The nearest existing parent is on the same disk as the folder that will be created below it.
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(existing).free


def format_bytes(size: float) -> str:
    """Return a number of bytes as text in decimal units, such as "700 kB" or "8.0 GB"."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
