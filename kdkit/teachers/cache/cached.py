"""A frozen net that is asked once about each draw of each sample, and else read from what was recorded."""

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
    """Answers for a net that is asked, as that one would; nobody who asks can tell the two apart.

    form: how answers are kept, and given from the first time on. store: where; None where they are only brought into
    that form. audit: what looks after recorded ones.
    """

    def __init__(self, asked: TeacherSession, form: Codec, store: Store | None, audit: Audit) -> None:
        self.asked = asked
        self.form = form
        self.store = store
        self.audit = audit
        self._heard: list[NewOutputs] = []  # since the last epoch, for the other processes of the run

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return what it says of this batch, having asked for those samples that were not recorded."""
        found = self._find(batch)
        if found is None or self.store is None:
            return self._formed(self.asked(batch), batch)
        if found.known is not None:
            return self._completed(batch, found, found.known, self.store)
        parts = self.store.read(found)
        self.audit.look(batch, parts)
        return self.form.answer(parts, batch.labels.device)

    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        """Let the net answer once."""
        return self.asked.dry_run(batch)

    def observe(self, batch: Batch, outputs: Mapping[str, Tensor]) -> None:
        """Tell the net what those in training said."""
        self.asked.observe(batch, outputs)

    def on_step(self) -> None:
        """Tell the net that the weights were updated."""
        self.asked.on_step()

    def on_epoch_end(self) -> None:
        """Put what was recorded on the disk, and take up what other processes did: of this run, or of another."""
        self.asked.on_epoch_end()
        heard, self._heard = collectives.all_gather_objects(self._heard) if collectives.is_distributed() else [], []
        if self.store is not None:
            try:
                for each in heard:
                    self.store.take(each)
                self.store.flush()
            except OSError as error:
                self._give_up(first_line(error))
        collectives.barrier()  # for those of this run that write
        if self.store is not None:
            self.store.look_again()

    def state_dict(self) -> dict[str, Any]:
        """Return what the net's own respondent would: a run may go on without what was recorded."""
        return self.asked.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.asked.load_state_dict(state)

    def close(self) -> None:
        """Keep what was recorded, and leave the net as it was."""
        try:
            if self.store is not None:
                self.store.close()
        except OSError as error:
            warnings.warn(f"{self.audit.whose}: the last answers were not kept: {first_line(error)}", stacklevel=2)
        finally:
            self.asked.close()

    def _find(self, batch: Batch) -> Lookup | None:
        ids = batch.ids if batch.ids_on_cpu is None else batch.ids_on_cpu
        if self.store is None or ids is None or batch.draw is None:
            return None
        return self.store.find(ids, batch.draw)

    def _formed(self, answer: TeacherOutput, batch: Batch) -> TeacherOutput:
        return self.form.answer(self.form.packed(answer), batch.labels.device)

    def _completed(self, batch: Batch, found: Lookup, known: Tensor, store: Store) -> TeacherOutput:
        """Ask for what is missing, record it where this process may, and return the whole."""
        missing = known.logical_not().nonzero().flatten()
        parts = self.form.packed(self.asked(batch if len(missing) == len(batch) else batch.rows(missing)))
        if [(tuple(each.shape[1:]), each.dtype) for each in parts] != [(p.shape, p.dtype) for p in store.parts]:
            return self._given_up("its answers have another shape or dtype than before", batch)
        try:
            if store.writes:
                store.write(found.draw, found.rows[missing], parts)
        except OSError as error:
            return self._given_up(first_line(error), batch)
        if collectives.is_distributed():
            kept = tuple(each.clone() for each in parts)  # a loss may change its target in place
            self._heard.append(NewOutputs(found.draw, store.ids[found.rows[missing]], kept))
        if len(missing) < len(batch):
            parts = tuple(each.index_copy(0, missing, new) for each, new in zip(store.read(found), parts, strict=True))
        return self.form.answer(parts, batch.labels.device)

    def _given_up(self, reason: str, batch: Batch) -> TeacherOutput:
        """Ask at every step from this one on, as if nothing had been recorded."""
        self._give_up(reason)
        return self._formed(self.asked(batch), batch)

    def _give_up(self, reason: str) -> None:
        store, self.store = self.store, None
        warnings.warn(f"{self.audit.whose} is asked at every step from now on: {reason}", stacklevel=3)
        if store is not None:
            store.abandon()
