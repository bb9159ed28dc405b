"""Locate, list and delete stores: folders in the user's cache, one per set of records and preparation."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from kdkit import DataError
from kdkit.errors import first_line
from kdkit.utils.files import delete_temporary_files, write
from kdkit.utils.locks import FileLock
from kdkit.utils.paths import user_path
from kdkit_ecg.records.preparation import VERSION, Preparation
from kdkit_ecg.store.index import LOCK, SIGNALS, read_rows

FORMAT = 4  # of the files and keys of a store; part of its name, so another format is another store
METADATA = "store.json"  # the file that marks a folder as a store

_MOST_LETTERS = 60  # of the records' folder in the name of a store: each letter may take four of 255 bytes

StoreLocation = Path | str | Literal["auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFolder:
    """The folder of a store, which need not exist yet: the records of `sources`, prepared in one way."""

    path: Path
    sources: tuple[str, ...]
    preparation: dict[str, Any]

    @classmethod
    def locate(cls, location: StoreLocation, folders: Sequence[Path], preparation: Preparation) -> "StoreFolder":
        """Return the store of the records in these folders with this preparation. Reads and writes nothing."""
        sources = tuple(str(folder.resolve()) for folder in folders)
        options = {"version": VERSION, **asdict(preparation)}
        digest = hashlib.blake2b(repr((FORMAT, sources, sorted(options.items()))).encode(), digest_size=6).hexdigest()
        # The digest identifies the store. The name in front of it is for the user, and short enough for any disk.
        name = re.sub(r"[^-\w.]+", "-", folders[0].resolve().name)[:_MOST_LETTERS] or "root"
        return cls(path=stores_folder(location) / f"{name}-{digest}", sources=sources, preparation=options)

    @property
    def size(self) -> int:
        """The size of the store in bytes."""
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())

    @property
    def record_count(self) -> int:
        """The number of records in the store, including those with a fault."""
        return len(read_rows(self.path)[0])

    def complete(self) -> None:
        """Mark the folder as a store if it is not one yet, and remove what a killed process left unfinished.

        The store must be locked. Raises OSError if the folder cannot be written.
        """
        delete_temporary_files(self.path)
        if not (self.path / METADATA).is_file():
            metadata = {"format": FORMAT, "sources": self.sources, "preparation": self.preparation}
            write(self.path / METADATA, json.dumps(metadata, indent=1) + "\n")

    def delete(self) -> None:
        """Delete the store. Runs that read it are not affected; on Windows, it cannot be deleted meanwhile.

        The folder and its lock stay: a process that starts to prepare the records in the meantime waits for this lock.
        Raises DataError if another process is writing to it, or if it cannot be deleted.
        """
        try:
            with FileLock(self.path / LOCK, timeout=0):
                # First the one that a run keeps open, so that nothing is deleted if that fails, as on Windows.
                files = [path for path in self.path.iterdir() if path.name != LOCK]
                for file in sorted(files, key=lambda path: path.name != SIGNALS):
                    file.unlink()
        except Timeout as error:
            raise DataError(f"another process is writing to {self.path}; wait for it, or stop it") from error
        except OSError as error:
            raise DataError(f"{self.path} cannot be deleted: {first_line(error)}") from error


def stores_folder(location: StoreLocation = "auto") -> Path:
    """Return the folder that contains the stores: `location`, or a folder in the user's cache if "auto".

    The cache is $KDKIT_CACHE, or `kdkit` in the cache folder of the operating system. Raises DataError if this user has
    no home folder for it.
    """
    if location != "auto":
        return user_path(location)
    try:
        return _cache_folder() / "signals"
    except RuntimeError as error:
        raise DataError(
            "prepared records are kept in the home folder, but this user has none; choose another folder with "
            "KDKIT_CACHE or store="
        ) from error


def _cache_folder() -> Path:
    from_environment = os.environ.get("KDKIT_CACHE")
    if from_environment:
        return user_path(from_environment)  # only shells replace a tilde
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "kdkit" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kdkit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdkit"


def stores_in(folder: Path) -> Iterator[StoreFolder]:
    """Yield the stores in a folder, sorted by name. Other folders are skipped."""
    for path in sorted(folder.glob(f"*/{METADATA}")):
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
            sources, preparation = tuple(metadata["sources"]), dict(metadata["preparation"])
        except (OSError, ValueError, KeyError, TypeError):
            sources, preparation = ("unreadable",), {}  # listed nevertheless, so that it can be deleted
        yield StoreFolder(path=path.parent, sources=sources, preparation=preparation)
