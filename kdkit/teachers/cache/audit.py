"""Spot-check cached teacher outputs against the live teacher, and stop the run on a mismatch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.data.dataset import Split
from kdkit.errors import CacheError, DataError
from kdkit.teachers.base import TeacherSession
from kdkit.teachers.cache.codec import Codec, relative_distance
from kdkit.teachers.cache.store import Store
from kdkit.utils.randomness import preserve_rng_state

AUDIT_SAMPLES = 4  # the number of samples that are recomputed at a time, or more if the share requires it


class Audit:
    """Recomputes a share of one teacher's cached outputs.

    teacher: its name in messages. share: the share of cached outputs that are recomputed when they are read. tolerance:
    the largest difference that counts as rounding, relative to the largest value, if it is more than that of the codec.
    """

    def __init__(
        self, teacher: str, session: TeacherSession, codec: Codec, share: float, *, tolerance: float = 0.0
    ) -> None:
        self.teacher, self.share = teacher, share
        self._tolerance = max(codec.tolerance, tolerance)
        self._session, self._codec = session, codec
        self._due = 0.0  # the number of samples that are due for a check
        # Not seeded, so that each run checks different samples. No loss depends on it.
        self._generator = torch.Generator()
        self._generator.seed()

    def spot_check(self, batch: Batch, parts: Sequence[Tensor], store: Store) -> None:
        """Count a batch whose parts were read from a store, and check some of its samples if a check is due."""
        self._due += self.share * len(batch)
        if self._due < AUDIT_SAMPLES:
            return
        rows = torch.randperm(len(batch), generator=self._generator)[: int(self._due)]
        self._due -= len(rows)
        self.check(batch.rows(rows), [part[rows] for part in parts], store)

    def check_earlier(self, store: Store, split: Split, device: torch.device) -> None:
        """Before the first step, check some outputs for a split that an earlier stage or run has cached.

        Raises CacheError as `check` does.
        """
        written = store.written.nonzero()  # (rows, 2): draw and row
        if not self.share or not len(written):
            return
        draw = int(written[torch.randint(len(written), (), generator=self._generator)][0])
        rows = store.written[draw].nonzero().flatten()
        ids = store.ids[rows[torch.randperm(len(rows), generator=self._generator)[:AUDIT_SAMPLES]]]
        rows = torch.isin(torch.as_tensor(split.ids).cpu(), ids).nonzero().flatten()
        with preserve_rng_state():
            try:
                batch = split.batch(rows, draw)
            except DataError:  # samples of different shapes, for batches of one
                batch = split.batch(rows[:1], draw)
        try:
            cached = None if batch.ids is None else store.read(batch.ids, draw)
        except OSError:  # the first step that reads them reports the reason
            return
        if cached is None or not cached.parts:
            return
        parts = cached.parts
        if cached.hits is not None:  # damaged outputs are recomputed when they are read
            intact = cached.hits.nonzero().flatten()
            batch, parts = batch.rows(intact), tuple(part[intact] for part in parts)
        self.check(batch.to(device), parts, store)

    def check(self, batch: Batch, parts: Sequence[Tensor], store: Store) -> None:
        """Run the teacher on a batch. Raises CacheError if the cached parts differ by more than rounding."""
        with preserve_rng_state():
            output = self._session(batch)
        distance = relative_distance(self._codec.comparable(output, parts))
        if bool((distance <= self._tolerance).all()):
            return
        worst = int(distance.argmax())
        sample = "" if batch.ids is None else f" of sample {int(batch.ids[worst])} (draw {batch.draw})"
        raise CacheError(
            f"a cached output of {self.teacher} is not what it computes now: the output{sample} differs by "
            f"{float(distance[worst]):.2g} of the largest value, but rounding explains at most {self._tolerance:.2g}; "
            "its code, its data or the files of the cache changed in a way that the key does not cover: "
            "change the version=... of a function, delete them "
            f"(kdkit cache {store.path.parent} --delete {store.path.name[:12]}), or run without a cache "
            "(--teacher-cache off)"
        )
