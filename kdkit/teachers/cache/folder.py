"""A folder of cached outputs that runs share: one entry per key, limited in size, least recently used evicted first."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from kdkit.errors import CacheError, did_you_mean, first_line
from kdkit.teachers.cache.entry import USED, EntryInfo, EntrySpec, create_entry, is_intact, is_open, read_info
from kdkit.teachers.cache.store import Store
from kdkit.utils.files import exists
from kdkit.utils.locks import FileLock
from kdkit.utils.reprs import format_bytes

_NAME_LENGTH = 64  # the name of an entry is a SHA-256 in hexadecimal digits
_LOCK_SECONDS = 30.0  # how long to wait for another process that opens or deletes an entry
_FREE_BYTES = 2**28  # free space that is left on the disk


class UnusableFolderError(CacheError):
    """The cache folder cannot be locked, read or written."""


class CacheFolder:
    """Cache entries by digest. limit: in bytes; above it, the least recently used entries are evicted."""

    def __init__(self, path: Path, limit: float = math.inf) -> None:
        self.path, self.limit = path, limit

    def open(self, spec: EntrySpec) -> Store:
        """Open the store of an entry, which is created if needed.

        Raises UnusableFolderError if the folder cannot be written, and CacheError if there is no room for the entry.
        """
        path = self.path / spec.key.digest
        try:
            with self._locked():
                if path.exists() and not is_intact(path, spec):
                    if is_open(path):
                        raise UnusableFolderError(f"{path} is damaged, and another process uses it")
                    shutil.rmtree(path)
                self._make_room(path, spec.new_bytes)
                if not path.exists():
                    create_entry(path, spec)
                (path / USED).write_text(str(spec.new_bytes))
                return Store(path, spec.parts, len(spec.ids), spec.draws)
        except OSError as error:
            raise UnusableFolderError(f"{self.path} cannot be written: {first_line(error)}") from error

    def kept(self) -> list[EntryInfo]:
        """Return all entries, the most recently used first. Raises CacheError if the folder does not exist."""
        with self._existing():
            return self._entries()

    def delete(self, name: str) -> list[EntryInfo]:
        """Delete entries and return them. name: the name of a network, the start of a digest, or "all".

        Raises CacheError and deletes nothing if there is no such entry, or if one of them is in use.
        """
        with self._existing():
            entries = self._entries()
            chosen = [
                entry for entry in entries if name in ("all", entry.net) or (name and entry.path.name.startswith(name))
            ]
            if not chosen and name != "all":
                hint = did_you_mean(name, {entry.net for entry in entries})
                raise CacheError(f"{self.path} has no entry called {name!r}; {hint}")
            for entry in chosen:
                if entry.open:
                    raise CacheError(
                        f"the cached outputs of {entry.net!r} in {entry.path} are in use; wait for the run to end"
                    )
            for entry in chosen:
                shutil.rmtree(entry.path)
            return chosen

    def shrink(self, limit: int) -> list[EntryInfo]:
        """Evict the least recently used entries until at most `limit` bytes are left, and return them."""
        with self._existing():
            return self._evict(limit, self._entries())

    def _entries(self) -> list[EntryInfo]:
        """Return all entries, and delete incomplete ones. The caller must hold the folder's lock."""
        entries = []
        for path in self.path.iterdir():
            if len(path.name) == _NAME_LENGTH and path.is_dir():
                entry = read_info(path)
                if entry is not None:
                    entries.append(entry)
                elif not is_open(path):
                    shutil.rmtree(path)
        return sorted(entries, key=lambda entry: -entry.used)

    def _evict(self, limit: float, entries: Sequence[EntryInfo]) -> list[EntryInfo]:
        total, evicted = sum(entry.bytes for entry in entries), []
        for entry in sorted(entries, key=lambda entry: entry.used):
            if total > limit and not entry.open:
                shutil.rmtree(entry.path)
                total -= entry.bytes
                evicted.append(entry)
        return evicted

    def _make_room(self, path: Path, new_bytes: int) -> None:
        """Evict other entries to make room for this one. Raises CacheError if that is not enough."""
        entries = self._entries()
        current = next((entry.bytes for entry in entries if entry.path == path), 0)
        others = [entry for entry in entries if entry.path != path]
        size = max(current, new_bytes)
        limit = f"limited to {format_bytes(self.limit)} (--teacher-cache-size)"
        needed = f"its cached outputs take {format_bytes(size)}"
        if size > self.limit:  # checked first, so that nothing is evicted for an entry that never fits
            raise CacheError(f"{needed}, but {self.path} is {limit}")
        self._evict(self.limit - size, others)
        left = sum(entry.bytes for entry in others if entry.path.exists())
        if left + size > self.limit:
            raise CacheError(f"{needed}, but entries that other runs use fill {self.path}, {limit}")
        free = shutil.disk_usage(self.path).free - _FREE_BYTES
        if new_bytes - current > free:
            raise CacheError(f"{needed}, but the disk of {self.path} has only {format_bytes(max(free, 0))} left")

    @contextmanager
    def _existing(self) -> Iterator[None]:
        """Lock the folder. Raises CacheError if it does not exist or cannot be read."""
        try:
            if not exists(self.path) or not self.path.is_dir():
                raise CacheError(
                    f"there is no folder {self.path}; pass a teacher cache: next to a run folder, such as "
                    "runs/teacher_cache, or in the folder of --seeds or a sweep, such as runs/my-seeds/teacher_cache"
                )
            with self._locked():
                yield
        except OSError as error:
            raise CacheError(f"{self.path} cannot be read: {first_line(error)}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=_LOCK_SECONDS):
                yield
        except Timeout as error:
            raise UnusableFolderError(
                f"another process has locked {self.path} for more than {_LOCK_SECONDS:.0f} s"
            ) from error
