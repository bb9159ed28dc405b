"""The outputs of a network from the last epoch as its teacher (PS-KD)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.memory_bank import RowIndex
from kdkit.nets.taps import TapLike
from kdkit.teachers.base import OnlineTeacher, TeacherOutput, TeacherSession
from kdkit.utils import memory
from kdkit.utils.collectives import all_gather
from kdkit.utils.validation import validate_above_zero

_MEGABYTE = 2**20


@dataclass(frozen=True, slots=True)
class Past(OnlineTeacher):
    """The output of a network in training for each sample, from the last epoch in which it saw the sample (PS-KD).

    Kim et al. 2021. Only outputs are stored, no features: by sample id, in two tables with 4 bytes per value. One table
    is read and the other is written during an epoch; both are part of the checkpoint. Samples without a past output,
    such as all samples in the first epoch, are left out of the term and contribute no gradient.
    memory_limit: the most memory for both tables, in MB; None for the available memory of the device.
    """

    memory_limit: float | None = None

    def __post_init__(self) -> None:
        OnlineTeacher.__post_init__(self)
        validate_above_zero("memory_limit", self.memory_limit, optional=True)

    @property
    def name(self) -> str:
        """The name in terms and tables."""
        return f"past of {self.net.name}"

    def open(self, taps: Sequence[TapLike], context: BuildContext) -> TeacherSession:
        """Return a session with empty tables. Raises RecipeError if there are taps or the data has no sample ids."""
        if taps:
            raise RecipeError(f"{self.name!r} has no features, only outputs; leave out target=...")
        if context.samples is None or not context.ids:
            raise RecipeError(
                f"{self.name!r} stores outputs by sample id, but a user-defined DataLoader has none; pass its Dataset "
                "and collate_fn to TorchData instead"
            )
        return _PastSession(self, context.samples)


class _PastSession(TeacherSession):
    """Two tables by sample, (samples, classes): the outputs of earlier epochs, and those of the current epoch."""

    def __init__(self, teacher: Past, samples: int) -> None:
        self._teacher = teacher
        self._rows = RowIndex(samples)
        self._past, self._current = torch.zeros(0), torch.zeros(0)  # allocated in the dry run, when shapes are known
        self._has_past, self._has_current = torch.zeros(2, samples, dtype=torch.bool)
        self._stored = 0  # the number of samples with a past output, known without a wait for the device

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return the past outputs of these samples, and a mask of the samples that have one."""
        rows = self._rows(_ids(batch), remember=False)
        mask = None
        if not self._stored:
            mask = torch.zeros(len(batch), dtype=torch.bool)
        elif self._stored < len(self._has_past):
            # If a sample was never stored, its row may belong to another sample.
            mask = self._has_past[rows] & (self._rows.ids[rows] == batch.ids)
        return TeacherOutput(self._past[rows], mask=mask)

    @torch.no_grad()
    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        """Allocate the tables. Raises RecipeError if they do not fit into memory."""
        teacher = self._teacher
        output = teacher.net(batch)
        samples = len(self._has_past)
        memory.require(
            2 * 4 * samples * output[0].numel(),
            f"{teacher.name!r} for {samples} samples of {output[0].numel()} outputs",
            output.device,
            limit=None if teacher.memory_limit is None else int(teacher.memory_limit * _MEGABYTE),
            remedy="train on fewer samples, or raise its memory_limit if the device has more memory",
        )
        self._past = output.new_zeros(samples, *output.shape[1:], dtype=torch.float32)
        self._current = torch.zeros_like(self._past)
        self._has_past, self._has_current = self._has_past.to(output.device), self._has_current.to(output.device)
        self._rows.to(output.device)
        return ()

    @torch.no_grad()
    def observe(self, batch: Batch, outputs: Mapping[str, Tensor]) -> None:
        """Store the outputs for this batch. Every rank stores the outputs of all ranks."""
        ids = all_gather(_ids(batch))
        current = all_gather(outputs[self._teacher.net.name].to(self._current.dtype))
        rows = self._rows(ids, remember=True)
        self._current[rows] = current
        self._has_current[rows] = True

    def on_epoch_end(self) -> None:
        """Make the outputs of this epoch the past outputs. A sample without a new output keeps its older one."""
        has_current = self._has_current.view(-1, *(1 for _ in self._current.shape[1:]))
        self._past = torch.where(has_current, self._current, self._past)
        self._has_past |= self._has_current
        self._has_current.zero_()
        self._stored = int(self._has_past.sum())

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        self._past, self._current = change(self._past), change(self._current)
        self._has_past, self._has_current = change(self._has_past), change(self._has_current)
        self._rows._apply(change)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def state_dict(self) -> dict[str, Any]:
        """Return both tables. Between two epochs, the current one is empty."""
        has_current = self._has_current
        return {
            "rows": self._rows.state_dict(),
            "past": self._past,
            "has_past": self._has_past,
            "current": self._current[has_current],  # (stored samples, classes)
            "has_current": has_current,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rows.load_state_dict(state["rows"])
        self._past.copy_(state["past"])
        self._has_past.copy_(state["has_past"])
        self._stored = int(self._has_past.sum())
        self._has_current.copy_(state["has_current"])
        self._current[self._has_current] = state["current"].to(self._current.device)


def _ids(batch: Batch) -> Tensor:
    if batch.ids is None:
        raise RecipeError("past outputs are stored by sample id, but this batch has no ids")
    return batch.ids
