"""Train one epoch of an open stage: its batches, the validation, and the update of best weights and history."""

import copy
import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.engine.failures.network_errors import explain_single_sample
from kdkit.engine.failures.not_finite import ADVICE, cause_in_inputs, cause_in_outputs
from kdkit.engine.run_context import RunContext
from kdkit.engine.training.monitor import Monitor
from kdkit.engine.training.stage_checkpoints import StageCheckpoints
from kdkit.engine.training.stage_progress import BestCheckpoint, EpochPosition
from kdkit.engine.training.training_step import TrainingStep
from kdkit.engine.training.update_parts import Updates
from kdkit.errors import KdkitError
from kdkit.plugins.events import EpochEnded, Figures, StepEnded
from kdkit.utils import collectives, memory
from kdkit.utils.modules import copy_state
from kdkit.utils.randomness import seed_everything
from kdkit.utils.seeds import SeedPurpose, derive_seed


class EpochTrainer:
    """Trains the epochs of one stage. seed: of the stage."""

    def __init__(
        self, ctx: RunContext, step: TrainingStep, monitor: Monitor, checkpoints: StageCheckpoints, *, seed: int
    ) -> None:
        self.ctx = ctx
        self.stage = step.open_stage.stage
        self.step = step
        self.state = step.state
        self.monitor = monitor
        self.checkpoints = checkpoints
        self.batches = checkpoints.batches
        self.progress = checkpoints.progress
        self.seed = seed
        self.updates = Updates(step.open_stage, sized=not isinstance(ctx.recipe.data.train, LoaderSplit))
        self._reports_steps = ctx.callbacks.has_listeners("step_ended")

    def train(self, epoch: int) -> None:
        """Train an epoch, or the rest of it from the saved position if it is resumed."""
        rank = collectives.rank()
        purpose = (rank, SeedPurpose.RANK) if rank else ()  # each rank draws its own dropout masks
        seed_everything(derive_seed(self.seed, epoch, *purpose))  # an epoch is the same after a resume
        with self.ctx.interrupts.deferred():
            if self.progress.position.terms is None:
                with self.step.epoch(), explain_single_sample():
                    self.progress.position.terms = self._train_batches(epoch)
            with self.checkpoints.validating() as between_batches:
                values = self.monitor.validate(self.state, epoch, between_batches)
            self._end(epoch, self.progress.position.terms, values)
            self.checkpoints.after_epoch()
        self.ctx.callbacks.raise_error()

    def _train_batches(self, epoch: int) -> dict[str, float]:
        """Train on the batches of an epoch after the position, and return the mean of each term."""
        position = self.progress.position
        loader, sizes = self.batches.epoch(epoch, skip=position.batches), self.batches.sizes(epoch)
        # After skipped batches and before the next one is loaded, because both may draw random numbers.
        position.restore_rng(self.ctx.device)
        parts = self.updates.of_epoch(loader, sizes, position.batches, self.batches.per_epoch)
        self.step.open_stage.module.train()
        self.checkpoints.interval.restart()
        began = time.perf_counter() - position.seconds
        for index, (batch, part) in enumerate(parts, start=position.batches):
            values = self.step(batch, part)  # {term: unweighted value}
            # Scaled, so that means weigh terms by labels if the loss does, and the parts of ranks add up to the batch.
            position.means.add(part.scaled(values), part.samples)
            if position.means.not_finite is not None and not collectives.is_distributed():
                break  # several processes must fail together, at the end of the epoch
            if self._reports_steps:
                self._report_step(epoch, index, values)
            position.batches, position.seconds = index + 1, time.perf_counter() - began
            if part.ends_update:  # otherwise there are accumulated gradients, which a checkpoint does not hold
                self.checkpoints.after_update()
        terms = position.means.values(self.ctx.device)
        position.seconds = time.perf_counter() - began  # after the device has computed the last step
        self._require_finite(terms, epoch, position)
        self.state.on_epoch_end()
        return terms

    def _report_step(self, epoch: int, batch: int, values: Mapping[str, Tensor]) -> None:
        event = StepEnded(
            stage=self.stage.name,
            epoch=epoch,
            batch=batch,
            terms=Figures(values),
            learning_rate=self.state.optimizer.param_groups[0]["lr"],  # unlike state.lr, does not wait for the device
        )
        self.ctx.callbacks.call("step_ended", event)
        requested, position = self.ctx.callbacks.take_stop(), self.progress.position
        position.stopped_by = position.stopped_by or requested  # in the position, because a checkpoint holds it

    def _require_finite(self, terms: Mapping[str, float], epoch: int, position: EpochPosition) -> None:
        """Raise KdkitError with the cause if the mean of a term is not finite, and save the batch that caused it.

        terms: the means over the epoch.
        """
        labels = [label for label, mean in terms.items() if not math.isfinite(mean)]
        if not labels:
            return
        location, cause = f"epoch {epoch + 1}", None
        split, first = self.ctx.recipe.data.train, position.means.not_finite
        numbers = collectives.all_gather_objects([] if first is None else [first])
        if numbers and not isinstance(split, LoaderSplit):
            first = min(numbers)
            location += f", batch {first + 1}"
            cause, batch = self._cause_in(next(self.batches.epoch(epoch, skip=first)).to(self.ctx.device), split)
            file = self.checkpoints.folder.save_batch(batch)
            location += "" if file is None else f" (saved in {file})"
            collectives.barrier()  # the error of another rank may end the rank that saves the batch
        raise KdkitError(
            f"stage {self.stage.name!r}: {', '.join(map(repr, labels))} is not a finite number in {location}; "
            f"{cause or ADVICE}"
        )

    def _cause_in(self, batch: Batch, split: Split) -> tuple[str | None, Batch]:
        """Return the cause of values that are not finite in a batch, or None, and the part of the batch with them."""

        def in_inputs() -> str | None:
            return cause_in_inputs(batch, has_unknown=self.ctx.plan.context.has_unknown, split=split, name="train")

        def in_outputs() -> str | None:
            return cause_in_outputs(batch, self.step.open_stage.teacher_outputs(batch))

        # Outputs are checked last: if inputs are not finite, a user-defined teacher may fail, and averages are wrong.
        for find in (in_inputs, in_outputs):
            cause = find()
            causes = collectives.all_gather_objects([] if cause is None else [(cause, batch.to(torch.device("cpu")))])
            if causes:
                return causes[0]
        return None, batch

    def _end(self, epoch: int, terms: Mapping[str, float], values: Mapping[str, float]) -> None:
        """Keep the weights if they are the best, add the epoch to the history, and call the callbacks.

        terms: the means of the terms. values: the monitored metric by network.
        """
        progress, metric = self.progress, self.monitor.metric
        value = sum(values.values()) / len(values)
        self.state.on_validated(value)
        is_best = self.monitor.is_best(value, progress.best, [entry[metric.name] for entry in progress.history])
        if is_best:
            weights = {net.name: copy_state(self.state.validated_module(net)) for net in self.stage.objectives}
            progress.best = BestCheckpoint(epoch=epoch, value=value, weights=weights)
        position, progress.position = progress.position, EpochPosition()
        gradients = self.state.gradients()
        entry = {
            "epoch": epoch,
            "terms": dict(terms),
            metric.name: value,
            "best": is_best,
            "seconds": round(position.seconds, 3),
            "gradients": gradients,
            "peak_memory_bytes": memory.peak(self.ctx.device),
        }
        progress.history.append({name: value for name, value in entry.items() if value is not None})
        event = EpochEnded(
            stage=self.stage.name,
            epoch=epoch,
            terms=terms,
            weights=dict(self.state.weights()),
            monitor=metric.name,
            monitor_value=value,
            best=is_best,
            seconds=position.seconds,
            learning_rate=self.state.lr,
            term_nets={term.label: term.student_net.name for term in self.state.module.terms},
            monitor_values=values,
            gradients=copy.deepcopy(gradients),  # a callback must not change the history
            peak_memory_bytes=progress.peak_memory,
        )
        self.ctx.callbacks.call("epoch_ended", event)
        requested = self.ctx.callbacks.take_stop()
        # Only the first rank calls callbacks, but all ranks must end together.
        stopped_by = collectives.broadcast(position.stopped_by or requested)
        if stopped_by is not None and epoch + 1 < self.stage.training.epochs:
            progress.history[-1]["stopped_by"] = stopped_by
