"""A training step: the outputs of all networks for a batch, the losses, their gradients, and the weight update."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.engine.distributed.data_parallel import data_parallel
from kdkit.engine.options import RunOptions
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.train_state import TrainState
from kdkit.engine.training.update_parts import UpdatePart
from kdkit.teachers.base import TeacherOutputs
from kdkit.utils.collectives import same_rows, sync_buffers, sync_module


class TrainingStep:
    """Trains on one batch at a time, eagerly.

    module: the module of the stage as it is called, such as wrapped by DistributedDataParallel.
    """

    def __init__(
        self, open_stage: OpenStage, state: TrainState, options: RunOptions, module: nn.Module | None = None
    ) -> None:
        self.open_stage = open_stage
        self.state = state
        self.autocast = open_stage.autocast()
        self.forward: Callable[..., dict[str, Tensor]] = open_stage.module if module is None else module
        if options.compile:
            # Otherwise, a tap in a module that recomputes its activations would break the graph.
            config = torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)
            self.forward = config(torch.compile(self.forward))

    def __call__(self, batch: Batch, part: UpdatePart) -> dict[str, Tensor]:
        """Train on a batch, and return the unweighted value of every term by label, detached."""
        losses = self.add_gradients(batch, self.open_stage.teacher_outputs(batch), part)
        self.state.observe(batch)
        if part.ends_update:
            self.state.optimizer_step()
        return losses

    def epoch(self) -> AbstractContextManager[Any]:
        """Return the context in which the batches of an epoch are loaded and trained on."""
        return nullcontext()

    def add_gradients(
        self,
        batch: Batch,
        teacher_outputs: TeacherOutputs,
        part: UpdatePart,
        weights: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Run the students, add the gradients of the losses, and return the losses as `__call__` does."""
        if not torch.is_grad_enabled():  # user code, such as a callback, turned them off
            torch.set_grad_enabled(True)
        with self.autocast:
            losses = self.forward(batch, teacher_outputs)
        self.state.backward(part.scaled(losses), part.divisor, part.rank_weight, weights)
        return {label: loss.detach() for label, loss in losses.items()}


class DistributedStep(TrainingStep):
    """A training step of one of several ranks. The gradients of an update are averaged over the ranks.

    DistributedDataParallel averages them, unless the balancer does it itself.
    """

    def __init__(self, open_stage: OpenStage, state: TrainState, options: RunOptions) -> None:
        module = open_stage.module
        sync_buffers([module])
        self._parallel = None
        if state.balancer.averages_across_ranks:
            sync_module(module, module.progress.device)
        else:
            self._parallel = data_parallel(module)
        super().__init__(open_stage, state, options, self._parallel)

    def __call__(self, batch: Batch, part: UpdatePart) -> dict[str, Tensor]:
        """Train on this rank's part of a batch, and return the values of the terms for it."""
        with same_rows() if part.is_repeated else nullcontext():
            return super().__call__(batch, part)

    def add_gradients(
        self,
        batch: Batch,
        teacher_outputs: TeacherOutputs,
        part: UpdatePart,
        weights: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Add the gradients, which are averaged over the ranks after the last batch of an update."""
        with nullcontext() if part.ends_update or self._parallel is None else self._parallel.no_sync():
            losses = super().add_gradients(batch, teacher_outputs, part, weights)
        if part.ends_update:
            sync_buffers(self.open_stage.module.nets)
        return losses
