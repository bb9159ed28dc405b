"""A teacher session that reads outputs from the cache, and runs the teacher for samples that are not cached."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.errors import first_line
from kdkit.nets.taps import TapLike
from kdkit.teachers.base import TeacherOutput, TeacherSession
from kdkit.teachers.cache.audit import Audit
from kdkit.teachers.cache.codec import Codec
from kdkit.teachers.cache.store import CachedRows, NewOutputs, Store
from kdkit.utils import collectives
from kdkit.utils.reprs import describe_count


class CachedTeacher(TeacherSession):
    """Replaces the session of a frozen teacher, which has no state, and returns the same outputs.

    codec: how outputs are stored. Outputs are encoded and decoded even on their first use. store: the open entry, or
    None if outputs are encoded but not stored. audit: checks cached outputs against the teacher.
    """

    def __init__(self, session: TeacherSession, codec: Codec, store: Store | None, audit: Audit) -> None:
        self.session = session
        self.codec = codec
        self.store = store
        self.audit = audit
        self._new_outputs: list[NewOutputs] = []  # since the last exchange, for the rank that writes
        self._reported_damaged, self._reported_not_finite = 0, False

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return the output for a batch. The teacher runs on the cache misses only."""
        store = self.store
        cached = None if store is None else self._read(batch, store)
        if store is None or cached is None:
            return self._run_teacher(batch)
        if cached.hits is not None:
            return self._complete(batch, cached, cached.hits, store)
        self.audit.spot_check(batch, cached.parts, store)
        return self.codec.decode(cached.parts, batch.labels.device)

    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        """Run the teacher once."""
        return self.session.dry_run(batch)

    def on_epoch_end(self) -> None:
        """Flush new outputs to the disk, and read the outputs of other processes."""
        self._exchange_outputs()

    def state_dict(self) -> dict[str, Any]:
        """Flush new outputs to the disk, and return an empty state, so that a run can resume without the cache.

        A run that resumes from this state does not repeat the steps that computed the new outputs, and would compute
        them in other batches, with different rounding errors.
        """
        self._exchange_outputs()
        return {}

    def close(self) -> None:
        """Flush new outputs, and restore the modes of the network."""
        try:
            if self.store is not None:
                self.store.close()
        except OSError as error:
            warnings.warn(
                f"the last outputs of {self.audit.teacher} were not cached: {first_line(error)}", stacklevel=2
            )
        finally:
            self.session.close()
        if self.store is not None:
            self._report(self.store)

    def _exchange_outputs(self) -> None:
        """Flush new outputs to the disk, and read the outputs of other processes of this or another run."""
        distributed = collectives.is_distributed()
        new_outputs = collectives.all_gather_objects(self._new_outputs) if distributed else []
        self._new_outputs = []
        if self.store is not None:
            try:
                for outputs in new_outputs:
                    self.store.merge(outputs)
                self.store.flush()
            except OSError as error:
                self._stop_caching(first_line(error))
        collectives.barrier()  # the other ranks read after the rank that writes has flushed
        if self.store is not None:
            self._report(self.store)
            try:
                self.store.refresh()
            except OSError as error:
                self._stop_caching(first_line(error))

    def _read(self, batch: Batch, store: Store) -> CachedRows | None:
        """Return the rows of a batch; None if its samples cannot be identified, or the store cannot be read."""
        ids = batch.ids if batch.ids_on_cpu is None else batch.ids_on_cpu  # avoids a wait for the device
        if ids is None or batch.draw is None:
            return None
        try:
            return store.read(ids, batch.draw)
        except OSError as error:
            self._stop_caching(first_line(error))
            return None

    def _run_teacher(self, batch: Batch) -> TeacherOutput:
        return self.codec.decode(self.codec.encode(self.session(batch)), batch.labels.device)

    def _complete(self, batch: Batch, cached: CachedRows, hits: Tensor, store: Store) -> TeacherOutput:
        """Run the teacher on the cache misses, write their outputs, and return the output for the batch."""
        missing = hits.logical_not().nonzero().flatten()
        if len(missing) == len(batch) or not cached.damaged:
            parts = self.codec.encode(self.session(batch if len(missing) == len(batch) else batch.rows(missing)))
        else:
            # The last bits of an output may depend on the batch size. If a run is repeated, the damaged outputs were
            # computed in this same batch, so the whole batch gives the same bits again.
            parts = tuple(part.index_select(0, missing) for part in self.codec.encode(self.session(batch)))
        if [(tuple(part.shape[1:]), part.dtype) for part in parts] != [
            (part.shape, part.dtype) for part in store.parts
        ]:
            self._stop_caching("the shape or dtype of its outputs changed")
            return self._run_teacher(batch)
        rows = cached.rows[missing]
        try:
            if store.writes:
                store.write(cached.draw, rows, parts)
        except OSError as error:
            self._stop_caching(first_line(error))
            return self._run_teacher(batch)
        if collectives.is_distributed():
            copies = tuple(part.clone() for part in parts)  # a loss may change its target in place
            self._new_outputs.append(NewOutputs(cached.draw, store.ids[rows], copies))
        if len(missing) < len(batch):
            parts = tuple(part.index_copy(0, missing, new) for part, new in zip(cached.parts, parts, strict=True))
        return self.codec.decode(parts, batch.labels.device)

    def _report(self, store: Store) -> None:
        """Warn about outputs found damaged since the last call, and once about outputs that are not finite."""
        count, self._reported_damaged = store.damaged - self._reported_damaged, store.damaged
        if count:
            outputs = describe_count(count, "cached output")
            warnings.warn(
                f"{outputs} of {self.audit.teacher} {'was' if count == 1 else 'were'} damaged and computed again; the "
                f"disk of {store.path} may be failing, or another program writes there",
                stacklevel=4,
            )
        if store.not_finite and not self._reported_not_finite:
            self._reported_not_finite = True
            warnings.warn(
                f"outputs of {self.audit.teacher} are NaN or infinite for {store.not_finite:,} samples; these are not "
                "cached, but recomputed in each epoch",
                stacklevel=4,
            )

    def _stop_caching(self, reason: str) -> None:
        """Run the teacher in every step from now on."""
        store, self.store = self.store, None
        warnings.warn(f"{self.audit.teacher} is no longer cached: {reason}", stacklevel=4)
        if store is not None:
            store.abandon()
