"""Where stores are kept: in the user's cache, in one folder that can be found and deleted."""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from kdkit import DataError
from kdkit_ecg.records.preparation import VERSION, Preparation
from kdkit_ecg.store.index import LOCK, read_rows

FORMAT = 2  # of the files of a store and of its keys: another one is another store
ABOUT = "store.json"  # by which a folder is known to be a store

Where = Path | str | Literal["auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder that is a store, whether it is there already: records of `sources`, prepared in one way."""

    path: Path
    sources: tuple[str, ...]
    preparation: dict[str, Any]

    def claim(self) -> None:
        """Make the folder. Raises OSError where that cannot be."""
        self.path.mkdir(parents=True, exist_ok=True)
        about = {"format": FORMAT, "sources": self.sources, "preparation": self.preparation}
        if not (self.path / ABOUT).is_file():
            new = self.path / f".{ABOUT}.{os.getpid()}"
            new.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            new.replace(self.path / ABOUT)


def cache_folder() -> Path:
    """Return $KDKIT_CACHE, or else `kdkit` in the folder that the system has for what can be made again."""
    named = os.environ.get("KDKIT_CACHE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "kdkit" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kdkit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdkit"


def stores_folder(where: Where = "auto") -> Path:
    """Return the folder that holds the stores."""
    return cache_folder() / "signals" if where == "auto" else Path(where)


def place_of(where: Where, folders: Sequence[Path], preparation: Preparation) -> Place:
    """Return the store of the records in these folders, prepared in this way; asks and writes nothing."""
    sources = tuple(str(folder.resolve()) for folder in folders)
    told = {"version": VERSION, **asdict(preparation)}
    digest = hashlib.blake2b(repr((FORMAT, sources, sorted(told.items()))).encode(), digest_size=6).hexdigest()
    name = re.sub(r"[^-\w.]+", "-", folders[0].resolve().name) or "root"
    return Place(path=stores_folder(where) / f"{name}-{digest}", sources=sources, preparation=told)


def stores_in(folder: Path) -> Iterator[Place]:
    """Yield the stores in a folder, by name; what is no store is passed over."""
    for about in sorted(folder.glob(f"*/{ABOUT}")):
        try:
            told = json.loads(about.read_text(encoding="utf-8"))
            yield Place(path=about.parent, sources=tuple(told["sources"]), preparation=dict(told["preparation"]))
        except (OSError, ValueError, KeyError, TypeError):
            yield Place(path=about.parent, sources=("unreadable",), preparation={})


def size_of(place: Place) -> int:
    """Return how many bytes a store takes."""
    return sum(file.stat().st_size for file in place.path.iterdir() if file.is_file())


def records_in(place: Place) -> int:
    """Return how many records a store has, bad ones too."""
    return len(read_rows(place.path)[0])


def delete(place: Place) -> None:
    """Delete a store; runs that have it open go on. Raises DataError where it is just written, or cannot be deleted."""
    try:
        with FileLock(place.path / LOCK, timeout=0):
            for file in [each for each in place.path.iterdir() if each.name != LOCK]:
                file.unlink()
        shutil.rmtree(place.path)
    except Timeout as error:
        raise DataError(f"{place.path} is just written by another process; wait for it, or stop it") from error
    except OSError as error:
        raise DataError(f"{place.path} cannot be deleted: {error.strerror or error}") from error
