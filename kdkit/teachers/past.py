"""What a net in training said of each sample in its last epoch (PS-KD)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.errors import RecipeError
from kdkit.losses import BuildContext
from kdkit.losses.memory_bank import RowIndex
from kdkit.losses.validation import validate_above_zero
from kdkit.nets.net import Net
from kdkit.nets.taps import TapLike
from kdkit.teachers.base import TeacherOutput, TeacherSession
from kdkit.teachers.peer import require_net
from kdkit.utils import memory
from kdkit.utils.collectives import all_gather

_MEGABYTE = 2**20


@dataclass(frozen=True, slots=True)
class Past:
    """What a net in training said of each sample when it last saw it in an earlier epoch (PS-KD, Kim et al. 2021).

    Outputs only, kept by sample id in two tables of 4 bytes a number, one that is read and one that is written during
    an epoch, and saved with the run. A sample that has no past yet, as all in the first epoch, is answered with what
    the net says now, which moves nothing. memory_limit: of both tables, in MB; None for what the device has left.
    """

    net: Net[Any]
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        require_net(self.net, self)
        if self.memory_limit is not None:
            validate_above_zero("memory_limit", self.memory_limit)

    @property
    def name(self) -> str:
        """What it is called in terms and tables."""
        return f"past of {self.net.name}"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes of its outputs, where they differ from the data's."""
        return self.net.classes

    def open(self, taps: Sequence[TapLike], facts: BuildContext) -> TeacherSession:
        """Return the memory, empty as yet. Raises RecipeError for taps, or for data that has no ids."""
        if taps:
            raise RecipeError(f"{self.name!r} remembers outputs only; match it without target=...")
        if facts.samples is None or not facts.ids:
            raise RecipeError(
                f"{self.name!r} remembers samples by their ids, and a DataLoader of your own has none; pass its "
                "Dataset instead"
            )
        return _Remembering(self, facts.samples)


class _Remembering(TeacherSession):
    """Two tables by sample: what was said in earlier epochs, and what is said in this one."""

    def __init__(self, teacher: Past, samples: int) -> None:
        self._source = teacher
        self._rows = RowIndex(samples)
        self._last, self._now = torch.zeros(0), torch.zeros(0)
        self._known, self._said = torch.zeros(2, samples, dtype=torch.bool)

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return the past outputs of these samples, and of which there are any."""
        rows = self._rows(_ids(batch), remember=False)
        known = self._known[rows] & (self._rows.ids[rows] == batch.ids)
        return TeacherOutput(self._last[rows], known=known)

    @torch.no_grad()
    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        """Make the tables for outputs of this shape. Raises RecipeError where they would be too large."""
        output = self._source.net(batch)
        samples = len(self._known)
        limit = self._source.memory_limit
        memory.require(
            2 * 4 * samples * output[0].numel(),
            f"{self._source.name!r} for {samples} samples of {output[0].numel()} outputs",
            output.device,
            limit=None if limit is None else int(limit * _MEGABYTE),
            remedy="learn from fewer samples, or raise its memory_limit where there is room",
        )
        self._last = output.new_zeros(samples, *output.shape[1:], dtype=torch.float32)
        self._now = torch.zeros_like(self._last)
        self._known, self._said = self._known.to(output.device), self._said.to(output.device)
        self._rows.to(output.device)
        return ()

    @torch.no_grad()
    def observe(self, batch: Batch, outputs: Mapping[str, Tensor]) -> None:
        """Remember what the net said of this batch, on every rank what it said on all of them."""
        ids = all_gather(_ids(batch))
        said = all_gather(outputs[self._source.net.name].to(self._now.dtype))
        rows = self._rows(ids, remember=True)
        self._now[rows] = said
        self._said[rows] = True

    def on_epoch_end(self) -> None:
        """Turn the page: what was said in this epoch is the past of the next."""
        self._last = torch.where(self._said.view(-1, *(1 for _ in self._now.shape[1:])), self._now, self._last)
        self._known |= self._said
        self._said.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the table that is read, as it is between two epochs."""
        return {"rows": self._rows.state_dict(), "last": self._last, "known": self._known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._rows.load_state_dict(state["rows"])
        self._last.copy_(state["last"])
        self._known.copy_(state["known"])


def _ids(batch: Batch) -> Tensor:
    if batch.ids is None:
        raise RecipeError("the past is kept by sample id, and this batch has none")
    return batch.ids
