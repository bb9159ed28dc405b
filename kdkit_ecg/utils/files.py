"""Group the files of a release by folder, and measure free disk space."""

import re
import shutil
from pathlib import Path, PurePath

# Releases split large folders into shards: g1, g2, ... in the Challenges, and 00000, 01000, ... in PTB-XL.
_SHARD = re.compile(r"g\d+|\d+")


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
