"""A training step: the outputs of all networks for a batch, the losses, their gradients, and the weight update."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.engine.distributed.data_parallel import DistributedModule
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.train_state import TrainState
from kdkit.engine.training.update_parts import UpdatePart
from kdkit.teachers.base import TeacherOutput, TeacherOutputs
from kdkit.utils.collectives import same_rows

_NO_CONTEXT = nullcontext()


class TrainingStep:
    """Trains on one batch at a time, eagerly."""

    def __init__(
        self, open_stage: OpenStage, state: TrainState, module: DistributedModule, autocast: AbstractContextManager[Any]
    ) -> None:
        self.open_stage = open_stage
        self.state = state
        self.module = module
        self.autocast = autocast

    def __call__(self, batch: Batch, part: UpdatePart) -> dict[str, Tensor]:
        """Train on a batch, and return the unweighted value of every term by label, detached."""
        with same_rows() if part.is_repeated else _NO_CONTEXT:
            losses = self.add_gradients(batch, self.teacher_outputs(batch, self.open_stage.sessions), part)
            if part.ends_update:
                self.state.optimizer_step()
            self.state.observe(batch)
        return losses

    def epoch(self) -> AbstractContextManager[Any]:
        """Return the context in which the batches of an epoch are loaded and trained on."""
        return nullcontext()

    def teacher_outputs(self, batch: Batch, sessions: Mapping[str, Any]) -> dict[str, TeacherOutput]:
        """Return the outputs of these teachers by name, computed or read from the teacher cache."""
        with self.autocast:
            return {name: session(batch) for name, session in sessions.items()}

    def add_gradients(
        self,
        batch: Batch,
        teacher_outputs: TeacherOutputs,
        part: UpdatePart,
        weights: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Run the students, add the gradients of the losses, and return the losses as `__call__` does."""
        with self.module.update(ends=part.ends_update):
            with self.autocast:
                losses = self.module(batch, teacher_outputs)
            self.state.backward(part.scaled(losses), part.divisor, part.rank_weight, weights)
        return {label: loss.detach() for label, loss in losses.items()}
