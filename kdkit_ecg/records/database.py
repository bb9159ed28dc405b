"""Say which database a file of a release belongs to, by the folder that it stands in."""

import re
from pathlib import PurePath

# Folders that only keep others small: g1, g2, ... of the Challenges, 00000, 01000, ... of PTB-XL.
_SHARD = re.compile(r"g\d+|\d+")


def database_of(path: PurePath) -> str:
    """Return the folder of a file, its path relative to the root, without shards: "training/georgia" or "."."""
    parts = list(path.parent.parts)
    while parts and _SHARD.fullmatch(parts[-1]):
        parts.pop()
    return PurePath(*parts).as_posix()
