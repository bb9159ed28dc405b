"""Look up prepared records in a store, and prepare those that it lacks."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import Timeout

from kdkit import DataError
from kdkit.utils.console import make_console
from kdkit.utils.locks import FileLock
from kdkit.utils.reprs import format_bytes
from kdkit_ecg.records.preparation import Preparation
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.store.build import append_records
from kdkit_ecg.store.index import LOCK, ROW, Rows, make_row, read_rows, remove_rows, signal_bytes, write_rows
from kdkit_ecg.store.location import StoreFolder, StoreLocation
from kdkit_ecg.store.signal_file import SignalFile
from kdkit_ecg.utils.record_files import free_space

_ALTERNATIVES = (
    "choose another folder with KDKIT_CACHE or store=, or use store=None, which prepares the records in every run and "
    "holds all signals in memory"
)

# Records whose files cannot be read share this key, and its row is part of every lookup.
_UNREADABLE_KEY = bytes(16)
_UNREADABLE_ROW: Rows = np.frombuffer(make_row(_UNREADABLE_KEY, b"", 0, None, "signal"), dtype=ROW)


class StoredRows(NamedTuple):
    """rows: index rows of the requested records, in their order. prepared: how many records were prepared for them."""

    rows: Rows
    prepared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalStore:
    """The prepared signals of the records in some folders, with one preparation.

    location: the folder that contains the stores, or "auto" for the user's cache.
    processes: the number of processes that prepare records; None chooses it by the numbers of cores and records.
    """

    folders: tuple[Path, ...]
    preparation: Preparation
    location: StoreLocation = "auto"
    processes: int | None = None

    @property
    def folder(self) -> StoreFolder:
        """The folder of the store."""
        return StoreFolder.locate(self.location, self.folders, self.preparation)

    def prepare(self, sources: Sequence[RecordSource], *, verify: bool = False) -> StoredRows:
        """Return the index rows of these records. Records that the store lacks are prepared first.

        Only one process prepares at a time; others wait for it. If no record is missing, the store is neither locked
        nor written. verify: read all signals, and prepare damaged ones again.
        Raises DataError if the folder cannot be written, or if the disk is too full.
        """
        try:
            return self._find_or_prepare(sources, verify=verify)
        except OSError as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"prepared records cannot be stored in {self.folder.path}: {reason}; {_ALTERNATIVES}"
            ) from error

    def _find_or_prepare(self, sources: Sequence[RecordSource], *, verify: bool) -> StoredRows:
        keys = [self._key(source) for source in sources]
        rows, prepared = self._read_rows(), 0
        if verify or not set(keys) <= _row_by_key(rows).keys():
            with self._lock():
                self._remove_invalid(verify=verify)
                # Read again under the lock: another process may have prepared the records in the meantime.
                stored = _row_by_key(self._read_rows())
                missing = {key: source for key, source in zip(keys, sources, strict=True) if key not in stored}
                not_stored = self._prepare_missing(missing)
            rows, prepared = np.concatenate([self._read_rows(), not_stored]), len(missing)
        row_by_key = _row_by_key(rows)
        if not set(keys) <= row_by_key.keys():
            raise DataError(f"{self.folder.path} was changed during the preparation; run the same command again")
        return StoredRows(rows[[row_by_key[key] for key in keys]], prepared)

    def _read_rows(self) -> Rows:
        return np.concatenate([_UNREADABLE_ROW, read_rows(self.folder.path)[0]])

    def _prepare_missing(self, missing: dict[bytes, RecordSource]) -> Rows:
        """Prepare these records, and return the rows of those that were not stored."""
        times = [self.preparation.expected_samples(source) for source in missing.values()]
        needed = int(signal_bytes(len(self.preparation.leads), times).sum()) + len(missing) * ROW.itemsize
        free = free_space(self.folder.path)
        if needed > free:
            raise DataError(
                f"{len(missing):,} prepared records need {format_bytes(needed)}, but {self.folder.path} has "
                f"{format_bytes(free)} free; free some space (`kdkit ecg store` lists the stores), {_ALTERNATIVES}"
            )
        return append_records(self.folder.path, missing, self.preparation, self.processes, self._key)

    def _remove_invalid(self, *, verify: bool) -> None:
        """Remove invalid rows from the index, and damaged signals if `verify`. The store must be locked."""
        path = self.folder.path
        rows, invalid = read_rows(path)
        if invalid:
            write_rows(path, rows)
        if verify:
            file = SignalFile(path, rows)
            damaged = [key for row, key in enumerate(rows["key"].tolist()) if not file.is_intact(row)]
            if damaged:
                remove_rows(path, damaged)

    def _key(self, source: RecordSource) -> bytes:
        """Return a hash of the header and the state of the signal files, _UNREADABLE_KEY if they cannot be read.

        The hash covers the header as it was parsed and as it is on disk now, because the file may have been replaced
        since.
        """
        roots = [number for number, folder in enumerate(self.folders) if source.path.is_relative_to(folder)]
        root = self.folders[roots[0]] if roots else source.path.parent
        try:
            states = [source.path.with_name(name).stat() for name in source.files]
            header_bytes = source.description()
        except (OSError, DataError):
            return _UNREADABLE_KEY
        # Size and time of change stand for the content of a signal file, which is too large to hash in every run.
        files = [(name, state.st_size, state.st_mtime_ns) for name, state in zip(source.files, states, strict=True)]
        name = source.path.relative_to(root).as_posix()
        identity = (roots[:1], name, source.signal_fields, header_bytes, files)
        return hashlib.blake2b(repr(identity).encode(), digest_size=16).digest()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        folder = self.folder
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            message = f"another process is preparing the same records in {folder.path}; waiting for it"
            make_console(stderr=True, markup=False).print(message, soft_wrap=True)
            lock.acquire()
        try:
            folder.complete()
            yield
        finally:
            lock.release()


def _row_by_key(rows: Rows) -> dict[bytes, int]:
    return {key: row for row, key in enumerate(rows["key"].tolist())}
