"""A teacher session that reads outputs from the cache, and runs the teacher for samples that are not in it."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.errors import first_line
from kdkit.nets.taps import TapLike
from kdkit.teachers.base import TeacherOutput, TeacherSession
from kdkit.teachers.cache.audit import Audit
from kdkit.teachers.cache.codec import Codec
from kdkit.teachers.cache.store import Lookup, NewOutputs, Store
from kdkit.utils import collectives


class CachedTeacher(TeacherSession):
    """Stands in for the session of a frozen teacher; objectives get the same outputs from both.

    codec: how outputs are stored; they are encoded and decoded from the first use on. store: the open entry, or None
    if outputs are only encoded. audit: checks cached outputs against the teacher.
    """

    def __init__(self, session: TeacherSession, codec: Codec, store: Store | None, audit: Audit) -> None:
        self.session = session
        self.codec = codec
        self.store = store
        self.audit = audit
        self._new_outputs: list[NewOutputs] = []  # of this epoch, for the rank that writes

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return the output for a batch; the teacher runs on the samples that miss in the cache."""
        lookup = self._lookup(batch)
        if lookup is None or self.store is None:
            return self._run_teacher(batch)
        if lookup.hits is not None:
            return self._complete(batch, lookup, lookup.hits, self.store)
        parts = self.store.read(lookup)
        self.audit.spot_check(batch, parts)
        return self.codec.decode(parts, batch.labels.device)

    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        """Run the teacher once."""
        return self.session.dry_run(batch)

    def observe(self, batch: Batch, outputs: Mapping[str, Tensor]) -> None:
        """Pass on the outputs of the nets in training."""
        self.session.observe(batch, outputs)

    def on_step(self) -> None:
        """Pass on that the weights were updated."""
        self.session.on_step()

    def on_epoch_end(self) -> None:
        """Flush new outputs to the disk, and read those of other processes."""
        self.session.on_epoch_end()
        self._exchange_outputs()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the teacher's own session, so that a run can resume without the cache.

        New outputs are flushed, since a run that resumes from this state does not repeat the steps that computed them.
        It would compute them in other batches, and so with other rounding errors.
        """
        self._exchange_outputs()
        return self.session.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self.session.load_state_dict(state)

    def close(self) -> None:
        """Flush new outputs, and restore the net."""
        try:
            if self.store is not None:
                self.store.close()
        except OSError as error:
            warnings.warn(
                f"the last outputs of {self.audit.teacher} were not cached: {first_line(error)}", stacklevel=2
            )
        finally:
            self.session.close()

    def _exchange_outputs(self) -> None:
        """Flush new outputs to the disk, and read those of other processes, of this run or of another one."""
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
            self.store.refresh()

    def _lookup(self, batch: Batch) -> Lookup | None:
        ids = batch.ids if batch.ids_on_cpu is None else batch.ids_on_cpu  # no wait for the device
        if self.store is None or ids is None or batch.draw is None:
            return None
        return self.store.lookup(ids, batch.draw)

    def _run_teacher(self, batch: Batch) -> TeacherOutput:
        return self.codec.decode(self.codec.encode(self.session(batch)), batch.labels.device)

    def _complete(self, batch: Batch, lookup: Lookup, hits: Tensor, store: Store) -> TeacherOutput:
        """Run the teacher on the samples that missed, write their outputs, and return the output for the batch."""
        missing = hits.logical_not().nonzero().flatten()
        parts = self.codec.encode(self.session(batch if len(missing) == len(batch) else batch.rows(missing)))
        if [(tuple(part.shape[1:]), part.dtype) for part in parts] != [
            (part.shape, part.dtype) for part in store.parts
        ]:
            self._stop_caching("the shape or dtype of its outputs changed")
            return self._run_teacher(batch)
        try:
            if store.writes:
                store.write(lookup.draw, lookup.rows[missing], parts)
        except OSError as error:
            self._stop_caching(first_line(error))
            return self._run_teacher(batch)
        if collectives.is_distributed():
            copies = tuple(part.clone() for part in parts)  # a loss may change its target in place
            self._new_outputs.append(NewOutputs(lookup.draw, store.ids[lookup.rows[missing]], copies))
        if len(missing) < len(batch):
            cached = store.read(lookup)
            parts = tuple(part.index_copy(0, missing, new) for part, new in zip(cached, parts, strict=True))
        return self.codec.decode(parts, batch.labels.device)

    def _stop_caching(self, reason: str) -> None:
        """Run the teacher at every step from this one on."""
        store, self.store = self.store, None
        warnings.warn(f"{self.audit.teacher} is no longer cached: {reason}", stacklevel=4)
        if store is not None:
            store.abandon()
