"""The folder in which a run caches teacher outputs: one that other runs share, or a private one."""

import shutil
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from kdkit.data.dataset import Data
from kdkit.engine.options import TEACHER_CACHE, RunOptions
from kdkit.teachers.cache import DataIdentity, identify


class CacheLocation:
    """The cache folder of a run. It is private if no other run could find an entry again, or read the folder.

    problem: why the shared folder cannot be used; "" if it can. If it is set, the folder is private.
    """

    def __init__(self, data: Data, options: RunOptions) -> None:
        self._data, self._options = data, options
        self._has_folder = options.out is not None or options.teacher_cache != "auto"
        self._private_folder: Path | None = None
        self.problem = ""

    @cached_property
    def identity(self) -> DataIdentity:
        """How samples are identified. Finding out may read all of them."""
        return identify(self._data)

    @property
    def is_private(self) -> bool:
        """Whether this run alone reads the folder."""
        return not self.identity.is_complete or not self._has_folder or bool(self.problem)

    def notices(self) -> Iterator[str]:
        """Yield the reason if the data prevents caching, or prevents other runs from reading the cache."""
        if self.identity.facts is None:
            yield f"teacher outputs are not cached: {self.identity.reason}"
        elif not self.identity.is_complete and self._has_folder:
            yield (
                "teacher outputs are cached for this run only, because the data has no digest of all its samples; to "
                "share them, set a text that changes with any sample: data.train_digest = '...'"
            )

    def folder(self) -> Path:
        """Return the folder. A private one is in the run folder, or a temporary one."""
        if not self.is_private:
            return self._options.teacher_cache_folder()
        if self._private_folder is None:
            out = self._options.out
            self._private_folder = (
                Path(tempfile.mkdtemp(prefix="kdkit-teacher-cache-")) if out is None else out / TEACHER_CACHE
            )
        return self._private_folder

    def close(self, *, ended: bool) -> None:
        """Delete a private folder. A run that may be resumed keeps it, so that it resumes to the same bits.

        ended: whether the run is finished.
        """
        folder, out = self._private_folder, self._options.out
        if folder is None and ended and out is not None and (out / TEACHER_CACHE).is_dir() and self.is_private:
            folder = out / TEACHER_CACHE  # written before the run was resumed
        if folder is not None and (ended or out is None):
            shutil.rmtree(folder, ignore_errors=True)
