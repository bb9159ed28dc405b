"""Time a few training steps of an open stage, and undo them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit
from kdkit.data.order import rows_per_pass, training_batch_sizes, training_rows
from kdkit.engine.stage.batch_transform import transformed
from kdkit.engine.stage.module import temporary_training
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.train_state import build_balancer, optimized_parameters
from kdkit.engine.stage.training_batches import batches_per_epoch
from kdkit.recipe.balancing.base import unscaled
from kdkit.recipe.training import Training
from kdkit.utils import memory
from kdkit.utils.devices import elapsed
from kdkit.utils.randomness import preserve_rng_state

_MOST_STEPS = 5  # per batch size
_READ_SAMPLES = 8  # read to estimate the reading of an epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """The time of an epoch on one device, estimated from a few steps, without data loading and validation.

    seconds: the time of an epoch in which every teacher runs. teachers: the share of each teacher in it, in seconds by
    name. steps: the number of training steps of an epoch. timed_samples: the batch size of the timed step.
    peak_memory_bytes: of this step on CUDA, if it had a whole batch; None otherwise.
    is_rough: whether steps are so slow that only a forward pass was timed.
    """

    seconds: float
    teachers: Mapping[str, float]
    steps: int
    timed_samples: int
    peak_memory_bytes: int | None
    is_rough: bool = False


def time_steps(open_stage: OpenStage, data: Data, batch: Batch, *, budget: float) -> StepTimes | None:
    """Return the time of an epoch, or None if it cannot be measured within a budget in seconds.

    batch: a tiny batch, before the data's `batch_transform`; its samples are repeated.
    """
    try:
        with temporary_training(open_stage.module, [open_stage.module]):
            return _measure(open_stage, data, batch, budget)
    except Exception:  # the dry run found no problem, so the cause is the batch size or the memory
        return None


def time_reading(data: Data, training: Training) -> float | None:
    """Return the time in seconds that one process takes to read an epoch of training data, from a few samples.

    Returns None if the stage has workers, or the data is a LoaderSplit, or samples cannot be read.
    """
    split = data.train
    if isinstance(split, LoaderSplit) or training.workers:
        return None
    rows = torch.linspace(0, len(split) - 1, min(_READ_SAMPLES, len(split))).long()
    try:
        with preserve_rng_state():
            split.batch(rows[:1], 0)  # the first read may import modules
            began = time.perf_counter()
            split.batch(rows, 0)
    except Exception:  # user code may raise anything; a run reports it
        return None
    seconds = (time.perf_counter() - began) / len(rows)
    samples = training_rows(rows_per_pass(split), training.batch_size)
    if training.steps_per_epoch is not None:
        samples = training.steps_per_epoch * training.batch_size
    return seconds * samples


def _measure(open_stage: OpenStage, data: Data, batch: Batch, budget: float) -> StepTimes:
    """Time steps with a tiny batch, then with a batch as large as the time allows."""
    ends = time.perf_counter() + budget
    training = open_stage.stage.training
    sizes = training_batch_sizes(data.train, training.batch_size)
    whole = sizes[0] if sizes else training.batch_size
    total = batches_per_epoch(data.train, training)
    tiny = transformed(data, batch.rows(torch.arange(min(len(batch), 4, whole))))
    count, peak = len(tiny), None
    steps = _Steps(open_stage)
    try:
        _, seconds, teachers = steps.losses(tiny)
        # The backward pass and the update take about twice as long as the forward pass.
        is_rough = 4 * seconds > budget
        if is_rough:
            seconds = 3 * seconds - 2 * sum(teachers.values())
        else:
            seconds, teachers = steps.fastest(tiny, until=ends - 0.75 * budget)
            affordable = count * (ends - time.perf_counter()) / seconds
            # The first step with a batch size is slower than later ones, so there should be time for two.
            count = min(whole, max(int(affordable / 2), count))
            if count > len(tiny):
                larger = transformed(data, batch.rows(torch.arange(count) % len(batch)))
                memory.reset_peak(larger.labels.device)
                seconds, teachers = steps.fastest(larger, until=ends)
            peak = memory.peak(batch.labels.device) if count == whole else None
    finally:
        steps.undo()  # buffers, modes and random states are restored by `temporary_training`
    # If only a part of a batch fits into the time, most of a step is spent on its samples.
    factor = whole / count * total
    return StepTimes(
        seconds=seconds * factor,
        teachers={name: taken * factor for name, taken in teachers.items()},
        steps=total,
        timed_samples=count,
        peak_memory_bytes=peak,
        is_rough=is_rough,
    )


_Times = tuple[float, dict[str, float]]  # the seconds of a step, and of each teacher in it


class _Steps:
    """Runs training steps of a stage; `undo` restores the parameters."""

    def __init__(self, open_stage: OpenStage) -> None:
        module, training = open_stage.module, open_stage.stage.training
        self.open_stage = open_stage
        self.balancer = build_balancer(training, module)
        named = optimized_parameters(module, self.balancer)
        self.parameters = [parameter for _, parameter in named]
        # Optimizers update parameters in place.
        self.before = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = training.optimizer.build(named)
        self.weights = module.weights(0.0)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], float, dict[str, float]]:
        """Run a forward pass, and return the values of the terms, and the seconds of the pass and of each teacher."""
        device = batch.labels.device
        outputs, teachers = {}, {}
        began = time.perf_counter()
        with self.open_stage.autocast():
            for name, session in self.open_stage.sessions.items():
                teacher_began = time.perf_counter()
                with torch.no_grad():
                    outputs[name] = session(batch)
                teachers[name] = elapsed(teacher_began, device)
            losses = self.open_stage.module(batch, outputs)
        return losses, elapsed(began, device), teachers

    def run(self, batch: Batch) -> _Times:
        """Train on a batch."""
        began = time.perf_counter()
        losses, _, teachers = self.losses(batch)
        self.balancer(losses, self.weights, unscaled)
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        return elapsed(began, batch.labels.device), teachers

    def fastest(self, batch: Batch, *, until: float) -> _Times:
        """Return the fastest of a few steps; no step is started that is expected to end after `until`."""
        best = self.run(batch)
        for _ in range(_MOST_STEPS - 1):
            if time.perf_counter() + best[0] > until:
                break
            best = min(best, self.run(batch), key=lambda times: times[0])
        return best

    def undo(self) -> None:
        """Restore the parameters and drop their gradients."""
        with torch.no_grad():
            for parameter, values in zip(self.parameters, self.before, strict=True):
                parameter.copy_(values)
                parameter.grad = None
