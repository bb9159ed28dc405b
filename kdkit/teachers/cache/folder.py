"""A folder of answers that runs share: a place for each teacher and use, bounded in size, the oldest given up first."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdkit.errors import CacheError, did_you_mean, first_line
from kdkit.teachers.cache.entry import EntryInfo, EntrySpec, create, fits, in_use, kept_in
from kdkit.teachers.cache.store import USED, Store

_DIGITS = 64  # of a sha256, by which places are called
_WAIT = 30.0  # seconds for another process to open or delete something
_SPARE = 2**28  # bytes that stay free on the disk


class CacheFolder:
    """Places by digest. limit: bytes, above which the places that were not used for longest are given up."""

    def __init__(self, path: Path, limit: float = math.inf) -> None:
        self.path, self.limit = path, limit

    def open(self, place: EntrySpec) -> Store:
        """Return the store of a place, made where it is not there. Raises CacheError where there is no room."""
        at = self.path / place.key.digest
        try:
            with self._alone():
                if at.exists() and not fits(at, place):
                    if in_use(at):
                        raise CacheError(f"{at} is damaged, and another process uses it")
                    shutil.rmtree(at)
                self._make_room(at, place.planned)
                if not at.exists():
                    create(at, place)
                (at / USED).write_text(str(place.planned))
                return Store(at, place.parts, len(place.ids), place.draws)
        except (OSError, RuntimeError) as error:  # torch raises a RuntimeError where a file cannot be mapped
            raise CacheError(f"{self.path} cannot be written: {first_line(error)}") from error

    def kept(self) -> list[EntryInfo]:
        """Return what is there, the last used first. Raises CacheError where there is no such folder."""
        with self._there():
            return self._kept()

    def delete(self, name: str) -> list[EntryInfo]:
        """Delete the places of a net by its name, by how their digest begins, or "all"; return them.

        Raises CacheError where none has this name, or one of them is in use; then nothing is deleted.
        """
        with self._there():
            return self._delete(name, self._kept())

    def shrink(self, most: int) -> list[EntryInfo]:
        """Delete the places that were not used for longest until at most so many bytes are left; return them."""
        with self._there():
            return self._shrink(most, self._kept())

    def _kept(self) -> list[EntryInfo]:
        """Return what is there, once what is broken is cleared away; only ever called by one process at a time."""
        found = []
        for each in self.path.iterdir():
            if len(each.name) == _DIGITS and each.is_dir():
                kept = kept_in(each)
                if kept is not None:
                    found.append(kept)
                elif not in_use(each):
                    shutil.rmtree(each)
        return sorted(found, key=lambda each: -each.used)

    def _delete(self, name: str, kept: Sequence[EntryInfo]) -> list[EntryInfo]:
        chosen = [each for each in kept if name in ("all", each.net) or (name and each.path.name.startswith(name))]
        if not chosen and name != "all":
            hint = did_you_mean(name, {each.net for each in kept})
            raise CacheError(f"nothing in {self.path} is called {name!r}; {hint}")
        for each in chosen:
            if each.open:
                raise CacheError(f"the answers of {each.net!r} in {each.path} are in use; wait for the run to end")
        for each in chosen:
            shutil.rmtree(each.path)
        return chosen

    def _shrink(self, most: float, kept: Sequence[EntryInfo]) -> list[EntryInfo]:
        total, given_up = sum(each.bytes for each in kept), []
        for each in sorted(kept, key=lambda each: each.used):
            if total > most and not each.open:
                shutil.rmtree(each.path)
                total -= each.bytes
                given_up.append(each)
        return given_up

    def _make_room(self, at: Path, planned: int) -> None:
        """Give up other places for a coming one. Raises CacheError where that is not enough."""
        kept = self._kept()
        own = next((each.bytes for each in kept if each.path == at), 0)
        others = [each for each in kept if each.path != at]
        wanted = max(own, planned)
        bound = f"held to {_said(self.limit)} (--teacher-cache-size)"
        needed = f"its answers take {_said(wanted)}"
        if wanted > self.limit:
            raise CacheError(f"{needed}, and {self.path} is {bound}")
        self._shrink(self.limit - wanted, others)
        left = sum(each.bytes for each in others if each.path.exists())
        if left + wanted > self.limit:
            raise CacheError(f"{needed}, and other runs fill {self.path}, {bound}")
        free = shutil.disk_usage(self.path).free - _SPARE
        if planned - own > free:
            raise CacheError(f"{needed}, and the disk of {self.path} has {_said(max(free, 0))} left")

    @contextmanager
    def _there(self) -> Iterator[None]:
        """Hold a folder that exists. Raises CacheError where it does not, or may not be written to."""
        if not self.path.is_dir():
            raise CacheError(
                f"there is no folder {self.path}; name one of recorded answers, such as runs/teacher_cache"
            )
        try:
            with self._alone():
                yield
        except OSError as error:
            raise CacheError(f"{self.path} cannot be looked through: {first_line(error)}") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=_WAIT):
                yield
        except Timeout as error:
            raise CacheError(f"another process holds {self.path} for more than {_WAIT:.0f} s") from error


def _said(amount: float) -> str:
    return f"{amount / 1e9:.3g} GB" if amount >= 1e8 else f"{amount / 1e6:.3g} MB"
