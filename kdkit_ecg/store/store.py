"""A store of prepared signals: which records are there, and one pass that prepares those that are not."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console

from kdkit import DataError
from kdkit_ecg.records.header import Header
from kdkit_ecg.records.preparation import Preparation
from kdkit_ecg.store.build import fill
from kdkit_ecg.store.index import LOCK, ROW, Rows, bytes_of, read_rows, row_of, without, write_rows
from kdkit_ecg.store.location import Place, Where, place_of
from kdkit_ecg.store.memory_map import Mapped
from kdkit_ecg.utils.disk import free_space, shown

_OR_ELSE = (
    "name another folder with KDKIT_CACHE or store=, or take store=None, which prepares in each run and holds all in "
    "memory"
)


class Filled(NamedTuple):
    """rows: of the index, one for each record that was asked for, in that order. came: how many were prepared now."""

    rows: Rows
    came: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where the records of some folders are kept, prepared in one way.

    processes: how many prepare; chosen by the processors and by what there is to do where None.
    """

    folders: tuple[Path, ...]
    preparation: Preparation
    where: Where = "auto"
    processes: int | None = None

    @property
    def place(self) -> Place:
        """The folder that it is."""
        return place_of(self.where, self.folders, self.preparation)

    def filled(self, headers: Sequence[Header], *, verify: bool = False) -> Filled:
        """Return the rows of these records, of which those that are not there are prepared first.

        One process at a time prepares, and another one waits for it; where all is there, nothing is locked or written.
        verify: read all that is there, and prepare anew what is damaged.
        Raises DataError where the folder cannot be written, or the disk lacks the room.
        """
        try:
            return self._filled(headers, verify=verify)
        except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"prepared records cannot be kept in {self.place.path}: {reason}; {_OR_ELSE}") from error

    def _filled(self, headers: Sequence[Header], *, verify: bool) -> Filled:
        keys = [self._key(header) for header in headers]
        rows, came = self._known(), 0
        if verify or not set(keys) <= _places(rows).keys():
            with self._writing():
                self._mend(verify=verify)
                known = _places(self._known())
                missing = {key: header for key, header in zip(keys, headers, strict=True) if key not in known}
                passing = self._prepare(missing)
            rows, came = np.concatenate([self._known(), passing]), len(missing)
        places = _places(rows)
        if not set(keys) <= places.keys():
            raise DataError(f"{self.place.path} was changed while records were prepared; run the same again")
        return Filled(rows[[places[key] for key in keys]], came)

    def _known(self) -> Rows:
        return np.concatenate([_UNREADABLE, read_rows(self.place.path)[0]])

    def _prepare(self, missing: dict[bytes, Header]) -> Rows:
        """Prepare these records; return the rows of those that are not kept."""
        times = [self.preparation.expected_time(header) for header in missing.values()]
        needed, free = int(bytes_of(times).sum()) + len(missing) * ROW.itemsize, free_space(self.place.path)
        if needed > free:
            raise DataError(
                f"{len(missing):,} prepared records need {shown(needed)}, but {self.place.path} has {shown(free)} "
                f"free; make room (`kdkit ecg store` shows what is kept), {_OR_ELSE}"
            )
        return fill(self.place.path, missing, self.preparation, self.processes, self._key)

    def _mend(self, *, verify: bool) -> None:
        """Leave nothing in the index that is not good; it must be locked."""
        rows, bad = read_rows(self.place.path)
        if bad:
            write_rows(self.place.path, rows)
        if verify:
            mapped = Mapped(self.place.path, rows)
            damaged = [key for at, key in enumerate(rows["key"].tolist()) if not mapped.is_sound(at)]
            if damaged:
                without(self.place.path, damaged)

    def _key(self, header: Header) -> bytes:
        """Return what changes with the header and the signal files of a record; _NONE where they cannot be read.

        The header is in it as it was read and as it is now: its file may have been replaced since, and wfdb reads it
        anew for gains and formats.
        """
        roots = [place for place, folder in enumerate(self.folders) if header.path.is_relative_to(folder)]
        root = self.folders[roots[0]] if roots else header.path.parent
        try:
            states = [header.path.with_name(name).stat() for name in header.files]
            told = header.path.read_bytes()
        except OSError:
            return _NONE
        files = [(name, each.st_size, each.st_mtime_ns) for name, each in zip(header.files, states, strict=True)]
        name = header.path.relative_to(root).as_posix()
        return hashlib.blake2b(repr((roots[:1], name, header.of_signal, told, files)).encode(), digest_size=16).digest()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        place = self.place
        place.claim()
        lock = FileLock(place.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            told = f"another process prepares the same records in {place.path}; waiting for it"
            Console(stderr=True).print(told, soft_wrap=True, markup=False, highlight=False)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


_NONE = bytes(16)
_UNREADABLE: Rows = np.frombuffer(row_of(_NONE, b"", 0, None, "signal"), dtype=ROW)


def _places(rows: Rows) -> dict[bytes, int]:
    return {key: place for place, key in enumerate(rows["key"].tolist())}
