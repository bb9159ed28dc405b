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
            return _measure(open_stage, data, batch, _Steps(open_stage), ends=time.perf_counter() + budget)
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


def _measure(open_stage: OpenStage, data: Data, batch: Batch, steps: "_Steps", *, ends: float) -> StepTimes | None:
    """Time steps with a tiny batch, then with a batch as large as the time allows."""
    training = open_stage.stage.training
    sizes = training_batch_sizes(data.train, training.batch_size)
    whole = sizes[0] if sizes else training.batch_size
    total = batches_per_epoch(data.train, training)
    tiny = transformed(data, batch.rows(torch.arange(min(len(batch), 4, whole))))
    budget = ends - time.perf_counter()
    try:
        forward = steps.losses(tiny)[1]
        # The backward pass and the update take about twice as long as the forward pass.
        if 4 * forward.seconds > budget:
            factor, of_teachers = whole / len(tiny) * total, sum(forward.teachers.values())
            return StepTimes(
                seconds=(3 * forward.seconds - 2 * of_teachers) * factor,
                teachers={name: taken * factor for name, taken in forward.teachers.items()},
                steps=total,
                timed_samples=len(tiny),
                peak_memory_bytes=None,
                is_rough=True,
            )
        timed = small = steps.fastest(tiny, until=ends - 0.75 * budget)
        affordable = len(tiny) * (ends - time.perf_counter()) / small.seconds
        # The first step with a batch size is slower than later ones, so there should be time for two. If only a small
        # part of a batch fits into the time, the step time is nearly proportional to the samples, so this suffices.
        count = min(whole, max(int(affordable / 2), len(tiny)))
        if count > len(tiny):
            larger = transformed(data, batch.rows(torch.arange(count) % len(batch)))
            memory.reset_peak(larger.labels.device)
            timed = steps.fastest(larger, until=ends)
        peak = memory.peak(batch.labels.device) if count == whole else None
        if small.waited or timed.waited:
            return None
    finally:
        steps.undo()  # buffers, modes and random states are restored by `temporary_training`
    # A step takes a constant time plus a time per sample; two batch sizes determine both. The first step with a size is
    # slow, and may be the only one, so the time per sample is not taken from the difference alone: if there was no
    # time for a whole batch, most of a step is spent on its samples.
    proportional = timed.seconds / count
    per_sample = (timed.seconds - small.seconds) / (count - len(tiny)) if count > len(tiny) else proportional
    seconds = timed.seconds + min(max(per_sample, proportional / 2), proportional) * (whole - count)
    factor = seconds / timed.seconds * total
    return StepTimes(
        seconds=timed.seconds * factor,
        teachers={name: taken * factor for name, taken in timed.teachers.items()},
        steps=total,
        timed_samples=count,
        peak_memory_bytes=peak,
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """The seconds of a step, and of each teacher in it. waited: whether other programs used the CPU during it."""

    seconds: float
    teachers: Mapping[str, float]
    waited: bool = False


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

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], _Step]:
        """Run a forward pass, and return the values of the terms and the time that it took."""
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
        return losses, _Step(elapsed(began, device), teachers)

    def run(self, batch: Batch) -> _Step:
        """Train on a batch."""
        losses, forward = self.losses(batch)
        began, cpu_began = time.perf_counter(), time.process_time()
        self.balancer(losses, self.weights, lambda total: total)
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        seconds = elapsed(began, batch.labels.device)
        # A backward pass on a CPU does not wait for anything, unlike teachers, which may call a service. Clocks can be
        # coarse.
        is_long = batch.labels.device.type == "cpu" and seconds > 0.05
        waited = is_long and time.process_time() - cpu_began < 0.5 * seconds
        return _Step(forward.seconds + seconds, forward.teachers, waited)

    def fastest(self, batch: Batch, *, until: float) -> _Step:
        """Return the fastest of a few steps; no step is started that is expected to end after `until`."""
        best = self.run(batch)
        for _ in range(_MOST_STEPS - 1):
            if time.perf_counter() + best.seconds > until:
                break
            best = min(best, self.run(batch), key=lambda step: step.seconds)
        return best

    def undo(self) -> None:
        """Restore the parameters and drop their gradients."""
        with torch.no_grad():
            for parameter, values in zip(self.parameters, self.before, strict=True):
                parameter.copy_(values)
                parameter.grad = None
