"""Ask again for a few recorded answers while a run goes on, and stop it where the teacher says something else now."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.errors import CacheError
from kdkit.teachers.base import TeacherSession
from kdkit.teachers.cache.codec import Codec, apart
from kdkit.utils.randomness import preserve_rng_state

SAMPLES = 4  # that are asked for at a time


class Audit:
    """Looks after the recorded answers of one net.

    share: of the answers that are read. rounding: how far they may lie apart, as a share of the largest figure.
    remedy: what to do, for the error.
    """

    def __init__(self, whose: str, asked: TeacherSession, form: Codec, share: float) -> None:
        self.whose, self.share = whose, share
        self.rounding, self.remedy = form.rounding, ""
        self._asked, self._form = asked, form
        self._owed = 0.0
        self._random = torch.Generator()
        self._random.seed()  # others in each run: it moves no figure

    def look(self, batch: Batch, parts: Sequence[Tensor]) -> None:
        """Be shown the recorded parts of a batch; ask for some of its samples when it is time."""
        self._owed += self.share * len(batch)
        if self._owed < SAMPLES:
            return
        self._owed -= SAMPLES
        rows = torch.randperm(len(batch), generator=self._random)[:SAMPLES]
        self.require_same(batch.rows(rows), [each[rows] for each in parts])

    def require_same(self, batch: Batch, parts: Sequence[Tensor]) -> None:
        """Ask for a batch. Raises CacheError where the recorded parts are more than rounding away from the answer."""
        with preserve_rng_state():
            answer = self._asked(batch)
        distance = apart(self._form.compared(answer, parts))
        if bool((distance <= self.rounding).all()):
            return
        worst = int(distance.argmax())
        sample = "" if batch.ids is None else f" of sample {int(batch.ids[worst])} (draw {batch.draw})"
        raise CacheError(
            f"{self.whose} does not say what is recorded of it: the answer{sample} is {float(distance[worst]):.2g} of "
            f"the largest figure away, where rounding makes at most {self.rounding:.2g}; its code, its data or the "
            f"files were changed in a way that kdkit does not see: {self.remedy}"
        )
