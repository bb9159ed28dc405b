"""The training loop: one stage, epoch by epoch and batch by batch."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from kdkit.data.dataset import LoaderSplit
from kdkit.data.label_check import LabelCheck
from kdkit.engine.capture import make_step
from kdkit.engine.check.recipe_problems import binary_loss_of
from kdkit.engine.checkpointing import BestCheckpoint, CheckpointInterval, EpochPosition, restore_rng
from kdkit.engine.distributed import DistributedModule, rank_share
from kdkit.engine.meters import RunningMeans
from kdkit.engine.monitor import Monitor
from kdkit.engine.not_finite import cause_in_inputs, cause_in_outputs
from kdkit.engine.open_training import opened_for_training
from kdkit.engine.run_context import RunContext
from kdkit.engine.storage.stage_folder import EndedEpoch, History, StageFolder
from kdkit.engine.train_state import TrainState
from kdkit.engine.training_batches import TrainingBatches, explain_single_sample
from kdkit.engine.training_step import TrainingStep, update_parts
from kdkit.engine.user_errors import located
from kdkit.errors import DataError, KdkitError, Terminated
from kdkit.plugins.events import EpochEnded, Figures, StageStarted, StepEnded
from kdkit.recipe.recipe import Stage
from kdkit.utils import collectives, memory
from kdkit.utils.modules import copy_state, load_state
from kdkit.utils.randomness import derive_seed, seed_everything


class StageTrainer:
    """Trains one stage, and resumes it from the checkpoint in `folder`. folder: None to keep nothing on disk."""

    def __init__(self, ctx: RunContext, index: int, stage: Stage, folder: StageFolder | None) -> None:
        self.ctx = ctx
        self.stage = stage
        self.training = stage.training
        self.index = index
        self.folder = folder
        self.seed = ctx.stage_seed(index)
        check = LabelCheck.of_data(ctx.recipe.data, ctx.recipe.data.train, bounded_by=binary_loss_of(ctx.recipe, stage))
        self.batches = TrainingBatches(ctx.recipe.data, ctx.device_data, stage.training, self.seed, check)
        self.best = BestCheckpoint()
        self.history: History = []
        self.monitor = Monitor(ctx, stage, self.seed)
        self.notices: list[str] = []
        self.cache_entries: Mapping[str, Any] = {}  # of teacher outputs, as they were when the stage began
        self.interval = CheckpointInterval(ctx.options.checkpoint_every)
        self._saved_position: dict[str, Any] | None = None  # in an epoch that a resumed run continues
        self.location: tuple[int, int | None] | None = None  # the epoch, and the batch unless it is validated

    def train(self) -> History:
        """Train all epochs, load the best weights into the networks, and return the history, one entry per epoch.

        A stage that is finished already is loaded from its folder.
        """
        finished = self.folder is not None and self.folder.finished
        if self.folder is not None and finished:
            _, self.history = self.folder.load_finished()
            self.best.weights = {net.name: self.folder.load_weights(net.name) for net in self.stage.objectives}
        else:
            try:
                with located(self._describe_location, self.ctx.options.out):
                    self._train()
            except (KeyboardInterrupt, Terminated):
                self._load_best()  # for whoever catches it, without the updates of the unfinished epoch
                if self.folder is not None and not self.ctx.interrupts.at_once:
                    self.folder.wait_or_warn()
                raise
            finally:
                if self.folder is not None and not self.ctx.interrupts.at_once:
                    self.folder.wait_until_written()
        self._load_best()
        if self.folder is not None and not finished:
            summary = {
                "best_epoch": self.best.epoch,
                "value": self.best.value,
                "epochs": len(self.history),
                "stopped_by": self._stopped_by(),
                "peak_memory_bytes": self._peak_memory(),
                "teacher_cache": self.cache_entries or None,
            }
            self.folder.finish({name: value for name, value in summary.items() if value is not None})
        return self.history

    def _load_best(self) -> None:
        """Load the best weights into the networks, which keep those they have if no epoch has ended."""
        for net in self.stage.objectives:
            if self.best.weights:
                load_state(net.network, self.best.weights[net.name])
                net.trained = True
            net.network.eval()

    def _train(self) -> None:
        seed_everything(self.seed)
        memory.reset_peak(self.ctx.device)
        options, batches = self.ctx.options, self.batches.per_epoch
        higher_is_better = self.monitor.higher_is_better
        with (
            self.ctx.explain_out_of_memory(self.stage, self.ctx.recipe.data.train, trains=True),
            opened_for_training(self.ctx, self.stage, batches=batches, higher_is_better=higher_is_better) as opened,
        ):
            open_stage, state, self.notices = opened
            self.cache_entries = self.ctx.teacher_caching.entries
            self._resume(state)
            first = len(self.history)
            averages = state.balancer.averages_across_ranks
            module = DistributedModule(open_stage.module, averages=averages, compiled=options.compile)
            autocast = options.autocast(self.ctx.device)
            step, reason = make_step(open_stage, state, module, autocast, capture=options.capture)
            if reason is not None:
                self.notices.append(f"the training step is not captured as a CUDA graph: {reason}")
            self._report_start(first, state)
            for epoch in range(first, self.training.epochs):
                if self._stopped_by() is not None:
                    break
                position = self._begin_epoch(epoch)
                try:
                    with self.ctx.interrupts.deferred():
                        with step.epoch(), explain_single_sample():
                            position.terms = position.terms or self._train_epoch(epoch, step, position)
                        self._saved_position = None  # of an epoch that was stopped after its last batch
                        self.location = epoch, None
                        values = self.monitor.validate(state, epoch, self._between_batches(state, position))
                        terms, position.terms = position.terms, None  # the epoch changes the state, so it must end
                        self._end_epoch(epoch, terms, values, state, position.seconds)
                        self._save_checkpoint(state)
                        if self.ctx.interrupts.agree():
                            self._end_run()
                except (KeyboardInterrupt, Terminated):
                    # All batches are trained, and only the validation is repeated.
                    if position.terms is not None and not collectives.is_distributed():
                        self._save_checkpoint(state, position)
                    raise
                self.ctx.callbacks.raise_error()
            with self.ctx.interrupts.deferred():
                if self.folder is not None:
                    self.folder.wait()  # a signal must not end the thread that writes the last checkpoint
                if self.ctx.interrupts.agree():
                    self._end_run()
        if math.isnan(self.best.value) and self.training.keep == "best":
            warnings.warn(
                f"stage {self.stage.name!r}: {self.monitor.metric.name!r} was undefined on the validation split "
                "in every epoch, so it could not choose the best one, and the last one is kept",
                stacklevel=2,
            )

    def _report_start(self, epoch: int, state: TrainState) -> None:
        sizes = self.batches.sizes(epoch)
        event = StageStarted(
            index=self.index,
            name=self.stage.name,
            epoch=epoch,
            batch=0 if self._saved_position is None else self._saved_position["batches"],
            epochs=self.training.epochs,
            batches=self.batches.per_epoch,
            notices=tuple(self.notices),
            samples=None if sizes is None else sum(sizes),
            learning_rate=state.lr,
            weights=dict(state.weights()),
            monitor=self.monitor.metric.name,
            best_value=None if self.best.epoch < 0 else self.best.value,
        )
        self.ctx.callbacks.call("stage_started", event)

    def _stopped_by(self) -> str | None:
        """Return what ends the stage before its last epoch: the reason of a callback, or "patience"; None if nothing.

        The history has it, so that a resumed run ends at the same epoch.
        """
        epochs, patience = len(self.history), self.training.patience
        if epochs in (0, self.training.epochs):
            return None
        if "stopped_by" in self.history[-1]:
            return str(self.history[-1]["stopped_by"])
        return "patience" if patience is not None and epochs - self.best.epoch > patience else None

    def _begin_epoch(self, epoch: int) -> EpochPosition:
        """Seed an epoch, so that it is the same after a resume, and return the position to train it from."""
        rank = collectives.rank()  # each rank draws its own dropout masks
        seed_everything(derive_seed(self.seed, epoch, rank) if rank else derive_seed(self.seed, epoch))
        return EpochPosition() if self._saved_position is None else EpochPosition.from_state(self._saved_position)

    def _train_epoch(self, epoch: int, step: TrainingStep, position: EpochPosition) -> dict[str, float]:
        """Train on the batches of an epoch after a position, and return the mean of each term."""
        loader, sizes = self.batches.epoch(epoch, skip=position.batches), self.batches.sizes(epoch)
        if self._saved_position is not None:
            # After batches were skipped, which may draw random numbers, and before one is loaded, which may too.
            restore_rng(self._saved_position, self.ctx.device)
        last = self.batches.per_epoch - 1
        parts = update_parts(sizes or [1] * self.batches.per_epoch, self.training.accumulate_steps)
        means = position.means
        report_steps = self.ctx.callbacks.has_listeners("step_ended")
        step.open_stage.module.train()
        self.interval.restart()
        began = time.perf_counter() - position.seconds
        for index, batch in enumerate(loader, start=position.batches):
            if index > last:
                raise DataError(f"the training data must have {last + 1} batches per epoch, its length, but has more")
            self.location = epoch, index
            batch = batch.to(self.ctx.device)  # from a user-defined DataLoader; others are there
            weight, samples = rank_share(len(batch), None if sizes is None else sizes[index])
            part = parts[index] if weight == 1 else parts[index]._replace(rank_weight=weight)
            values = step(batch, part)  # {term: unweighted value}
            means.add(values, samples)
            if means.not_finite is not None and not collectives.is_distributed():
                break  # several processes must fail together, at the end of the epoch
            if report_steps:
                event = StepEnded(
                    stage=self.stage.name,
                    epoch=epoch,
                    batch=index,
                    terms=Figures(values),
                    learning_rate=step.state.optimizer.param_groups[0]["lr"],
                )
                self.ctx.callbacks.call("step_ended", event)
            # Between two updates there are gradients, which a checkpoint does not hold.
            position.batches = index + 1
            if part.ends_update:
                is_due, ends_run = self.interval.is_due(), self.ctx.interrupts.agree_after_update()
                if is_due or ends_run:
                    position.seconds = time.perf_counter() - began
                    self._save_checkpoint(step.state, position)
                if ends_run:
                    self._end_run()
        term_means = means.values(self.ctx.device)
        position.seconds = time.perf_counter() - began  # after the device has computed the last step
        self._require_finite(term_means, means, epoch, step)
        if means.steps <= last:
            raise DataError(
                f"the training data must have {last + 1} batches per epoch, its length, but has {means.steps}"
            )
        step.state.on_epoch_end()
        return term_means

    def _between_batches(self, state: TrainState, position: EpochPosition) -> Callable[[], None]:
        """Return what a validation calls before each batch: a signal ends it.

        Several ranks leave together at its end. The first one writes a checkpoint as soon as it has got the signal, in
        case they are killed before.
        """
        interrupts, folder = self.ctx.interrupts, self.folder
        if not collectives.is_distributed():
            return interrupts.end_run
        # Of all ranks, none of which changes the state meanwhile.
        unsaved = [] if folder is None else [self._checkpoint(state, position)]

        def save_if_requested() -> None:
            if interrupts.requested and unsaved and folder is not None:
                folder.save_checkpoint(*unsaved.pop())

        return save_if_requested

    def _end_run(self) -> None:
        """End the run by the signal that was noted; several ranks leave when the first one has written a checkpoint."""
        if collectives.is_distributed():
            if self.folder is not None:
                self.folder.wait_or_warn()
            collectives.barrier()
        self.ctx.interrupts.end_run()

    def _require_finite(self, values: Mapping[str, float], means: RunningMeans, epoch: int, step: TrainingStep) -> None:
        """Raise KdkitError with the cause if the mean of a term is not a finite number, and save the batch in question.

        values: the means of the terms.
        """
        labels = [label for label, mean in values.items() if not math.isfinite(mean)]
        if not labels:
            return
        location, cause = f"epoch {epoch + 1}", None
        if means.not_finite is not None and not isinstance(self.ctx.recipe.data.train, LoaderSplit):
            location += f", batch {means.not_finite + 1}"
            batch = next(self.batches.epoch(epoch, skip=means.not_finite)).to(self.ctx.device)
            split, has_unknown = self.ctx.recipe.data.train, self.ctx.plan.context.has_unknown
            cause = cause_in_inputs(batch, has_unknown=has_unknown, split=split, name="train")
            if cause is None:  # otherwise a user-defined teacher might fail
                cause = cause_in_outputs(batch, step.teacher_outputs(batch, step.open_stage.sessions))
            if self.folder is not None:
                location += f" (saved in {self.folder.save_batch(batch)})"
        advice = "a lower learning rate, Training(max_grad_norm=...), or another precision may help"
        raise KdkitError(
            f"stage {self.stage.name!r}: {', '.join(map(repr, labels))} is not a finite number in {location}; "
            f"{cause or advice}"
        )

    def _end_epoch(
        self, epoch: int, terms: Mapping[str, float], values: Mapping[str, float], state: TrainState, seconds: float
    ) -> None:
        """Keep the best weights, add the epoch to the history, and call the callbacks. values: of the metric."""
        metric = self.monitor.metric
        value = sum(values.values()) / len(values)
        state.on_validated(value)
        is_best = self.monitor.is_best(value, self.best)
        if is_best:
            weights = {net.name: copy_state(state.validated_module(net.name)) for net in self.stage.objectives}
            self.best = BestCheckpoint(epoch=epoch, value=value, weights=weights)
        entry = {
            "epoch": epoch,
            "terms": dict(terms),
            metric.name: value,
            "best": is_best,
            "seconds": round(seconds, 3),
        }
        gradients = state.gradients()
        measured = {"gradients": gradients, "peak_memory_bytes": memory.peak(self.ctx.device)}
        self.history.append({**entry, **{name: value for name, value in measured.items() if value is not None}})
        self.ctx.callbacks.call(
            "epoch_ended",
            EpochEnded(
                stage=self.stage.name,
                epoch=epoch,
                terms=terms,
                weights=dict(state.weights()),
                monitor=metric.name,
                monitor_value=value,
                best=is_best,
                seconds=seconds,
                learning_rate=state.lr,
                term_nets={term.label: term.student_net.name for term in state.module.terms},
                monitor_values=values,
                gradients=copy.deepcopy(gradients),  # a callback must not change the history
                peak_memory_bytes=self._peak_memory(),
            ),
        )
        # Only the first rank calls callbacks, and all must end together.
        stopped_by = collectives.broadcast(self.ctx.callbacks.take_stop())
        if stopped_by is not None and epoch + 1 < self.training.epochs:
            self.history[-1]["stopped_by"] = stopped_by

    def _describe_location(self) -> str:
        if self.location is None:
            return f"stage {self.stage.name!r} before its first batch"
        epoch, batch = self.location
        part = "the validation" if batch is None else f"batch {batch + 1}"
        return f"stage {self.stage.name!r}, epoch {epoch + 1}, {part}"

    def _peak_memory(self) -> int | None:
        """Return the most bytes that tensors took in any epoch, also before a resume; None if it is not measured."""
        return max((entry["peak_memory_bytes"] for entry in self.history if "peak_memory_bytes" in entry), default=None)

    def _resume(self, state: TrainState) -> None:
        """Load the last checkpoint, if there is one."""
        loaded = self.folder.load_checkpoint() if self.folder is not None else None
        if loaded is None or self.folder is None:
            return
        checkpoint, self.history, notice = loaded
        with self.folder.reading(self.folder.path):
            state.load_state_dict(checkpoint["train_state"])
            self.best = BestCheckpoint(**checkpoint["best"])
            self._saved_position = checkpoint["position"]
            self.cache_entries = checkpoint["teacher_cache"]
        notices = [notice, self.batches.load_state_dict(checkpoint["stream"])]
        self.notices += filter(None, notices)
        # The run may have been killed before it deleted the oldest, or after it saved one of an epoch to be repeated.
        done = len(self.history)
        self.folder.delete_epochs(range(done - (self.ctx.options.keep_checkpoints or done), done))

    def _save_checkpoint(self, state: TrainState, position: EpochPosition | None = None) -> None:
        """Write a checkpoint at the end of an epoch, or at a position in one."""
        self.interval.restart()
        if self.folder is None:
            return
        step, checkpoint = self._checkpoint(state, position)
        if position is not None:
            self.folder.save_checkpoint(step, checkpoint)
            return
        done, kept = len(self.history), self.ctx.options.keep_checkpoints
        nets = self.stage.objectives if kept else ()
        ended = EndedEpoch(
            entry=self.history[-1],
            best_weights=self.best.weights if self.history[-1]["best"] else {},
            weights={net.name: copy_state(state.validated_module(net.name)) for net in nets},
            kept=range(done - kept, done),
        )
        self.folder.save_checkpoint(step, checkpoint, ended)

    def _checkpoint(self, state: TrainState, position: EpochPosition | None) -> tuple[int, dict[str, Any]]:
        """Return the number of batches so far, and the content of a checkpoint; all ranks call this."""
        batches = 0 if position is None else position.batches
        return len(self.history) * self.batches.per_epoch + batches, {
            "train_state": state.state_dict(),
            "stream": self.batches.state_dict(),
            "teacher_cache": self.cache_entries,
            "best": {"epoch": self.best.epoch, "value": self.best.value, "weights": self.best.weights},
            "position": None if position is None else position.state_dict(self.ctx.device),
        }
