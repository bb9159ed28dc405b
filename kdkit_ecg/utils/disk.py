"""How much room a disk has, and numbers of bytes for people."""

import shutil
from pathlib import Path


def free_space(folder: Path) -> int:
    """Return the bytes that are free where the folder is, or will be."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    return shutil.disk_usage(there).free


def shown(size: float) -> str:
    """Return a number of bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
