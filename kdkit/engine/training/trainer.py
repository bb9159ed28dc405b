"""Train one stage: open it, resume it, train its epochs, and load the best weights into its networks."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from kdkit.data.batch import Batch
from kdkit.data.label_check import LabelCheck
from kdkit.engine.check.dry_run import dry_run
from kdkit.engine.check.recipe_problems import binary_loss_of
from kdkit.engine.failures.user_errors import located
from kdkit.engine.run_context import RunContext
from kdkit.engine.stage.batch_transform import transformed
from kdkit.engine.stage.open_stage import OpenStage, tiny_batch
from kdkit.engine.stage.train_state import TrainState
from kdkit.engine.stage.training_batches import TrainingBatches
from kdkit.engine.storage.history import History
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.engine.training.capture import make_step
from kdkit.engine.training.epoch_trainer import EpochTrainer
from kdkit.engine.training.monitor import Monitor
from kdkit.engine.training.stage_checkpoints import StageCheckpoints
from kdkit.engine.training.stage_progress import StageProgress
from kdkit.errors import CheckError, KdkitError, Terminated
from kdkit.plugins.events import StageStarted
from kdkit.recipe.recipe import Stage
from kdkit.utils import memory
from kdkit.utils.modules import load_state
from kdkit.utils.randomness import seed_everything


class StageTrainer:
    """Trains one stage, or resumes it from the last checkpoint in `folder`."""

    def __init__(self, ctx: RunContext, index: int, stage: Stage, folder: StageFolder) -> None:
        self.ctx = ctx
        self.stage = stage
        self.training = stage.training
        self.index = index
        self.folder = folder
        self.seed = ctx.stage_seed(index)
        check = LabelCheck.of_data(ctx.recipe.data, ctx.recipe.data.train, bounded_by=binary_loss_of(ctx.recipe, stage))
        self.batches = TrainingBatches(ctx.recipe.data, ctx.device_data, stage.training, self.seed, check)
        self.progress = StageProgress()
        self.monitor = Monitor(ctx, stage, self.seed)
        self._has_begun = False  # whether the first epoch has begun

    @property
    def history(self) -> History:
        """An entry for each finished epoch."""
        return self.progress.history

    def train(self) -> None:
        """Train all epochs, and load the best weights into the networks. A finished stage is loaded from its folder."""
        if self.folder.finished:
            self._load_finished()
            return
        try:
            with located(self._describe_location, self.ctx.options.out):
                self._train()
                self._warn_about_history()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | Terminated):
                self._load_best()  # a caller that catches the interrupt gets the best weights, not those of this epoch
            if not self.ctx.interrupts.at_once:
                self.folder.wait_or_warn()
            raise
        self._finish()

    def _load_finished(self) -> None:
        """Load the history and the best weights of a finished stage from its folder."""
        _, self.progress.history = self.folder.load_finished()
        self.progress.best.weights = {net.name: self.folder.load_weights(net.name) for net in self.stage.objectives}
        with self.folder.reading(self.folder.path):  # a run may be forced to resume with other networks
            self._load_best()

    def _train(self) -> None:
        """Open the stage, resume it from its last checkpoint, and train the remaining epochs."""
        ctx, data = self.ctx, self.ctx.recipe.data
        seed_everything(self.seed)
        memory.reset_peak(ctx.device)
        with ctx.explain_out_of_memory(self.stage, data.train, trains=True):
            # Before the taps are opened, because a copy of a module has its hooks.
            ema = self.training.ema
            averages = {} if ema is None else {net.name: ema.build(net) for net in self.stage.objectives}
            batch = transformed(data, tiny_batch(data, self.training.batch_size).to(ctx.device))
            with self._opened(batch) as open_stage:
                notices = ctx.teacher_caching.cache_sessions(open_stage, batch)
                self.progress.cache_entries = ctx.teacher_caching.entries
                state = TrainState(
                    open_stage,
                    ctx.options,
                    averages,
                    batches=self.batches.per_epoch,
                    higher_is_better=self.monitor.higher_is_better,
                )
                checkpoints = StageCheckpoints(ctx, self.folder, self.batches, self.progress, state)
                notices += checkpoints.resume()
                step, step_notices = make_step(open_stage, state, ctx.options)
                epochs = EpochTrainer(ctx, step, self.monitor, checkpoints, seed=self.seed)
                self._report_start(state, [*notices, *step_notices, *epochs.updates.notices])
                self._has_begun = True
                for epoch in range(len(self.history), self.training.epochs):
                    if self._stopped_by() is not None:
                        break
                    epochs.train(epoch)
                checkpoints.finish()

    @contextmanager
    def _opened(self, batch: Batch) -> Iterator[OpenStage]:
        """Open the stage, and build its losses in a dry run on a tiny batch. Raises CheckError with the problems."""
        name = f"stage {self.stage.name!r}"
        try:
            open_stage = OpenStage(self.stage, self.ctx.plan.context, self.ctx.device, self.ctx.options.precision)
        except KdkitError as error:
            raise CheckError([f"{name}: {error}"]) from error
        with open_stage:
            problems = dry_run(open_stage, batch).problems
            if problems:
                raise CheckError(f"{name}: {problem}" for problem in problems)
            yield open_stage

    def _report_start(self, state: TrainState, notices: list[str]) -> None:
        best, epoch = self.progress.best, len(self.history)
        sizes = self.batches.sizes(epoch)
        event = StageStarted(
            index=self.index,
            name=self.stage.name,
            epoch=epoch,
            batch=self.progress.position.batches,
            epochs=self.training.epochs,
            batches=self.batches.per_epoch,
            notices=tuple(notices),
            samples=None if sizes is None else sum(sizes),
            learning_rate=state.lr,
            weights=dict(state.weights()),
            monitor=self.monitor.metric.name,
            best_value=None if best.epoch < 0 else best.value,
        )
        self.ctx.callbacks.call("stage_started", event)

    def _stopped_by(self) -> str | None:
        """Return why the stage ends early: the reason of a callback, or "patience"; None if it does not.

        It depends on the history alone, so that a resumed run ends after the same epoch.
        """
        epochs, patience, best = len(self.history), self.training.patience, self.progress.best
        if epochs in (0, self.training.epochs):
            return None
        if "stopped_by" in self.history[-1]:
            return str(self.history[-1]["stopped_by"])
        # The first epoch with the best value, although a later one is kept if the metric was constant until then.
        values = (entry[self.monitor.metric.name] for entry in self.history)
        improved = next((epoch for epoch, value in enumerate(values) if value == best.value), best.epoch)
        return "patience" if patience is not None and epochs - improved > patience else None

    def _warn_about_history(self) -> None:
        """Warn if the monitored metric could not choose an epoch, and about terms without effect."""
        if math.isnan(self.progress.best.value) and self.training.keep == "best":
            warnings.warn(
                f"stage {self.stage.name!r}: {self.monitor.metric.name!r} was undefined on the validation split "
                "in every epoch, so it could not choose the best epoch, and the last one is kept",
                stacklevel=2,
            )
        # In a first epoch, a teacher such as Past has no output, and the average of the student may be the student.
        if len(self.history) < 2:
            return
        for label in self.history[0]["terms"]:
            if all(entry["terms"][label] == 0 for entry in self.history):
                warnings.warn(
                    f"stage {self.stage.name!r}: term {label!r} was 0 in every batch, so it had no effect; its loss "
                    "may have left out all samples, as a mask or a threshold can",
                    stacklevel=2,
                )

    def _finish(self) -> None:
        """Load the best weights into the networks, and write the summary that marks the stage as finished."""
        try:
            self._load_best()
        except ValueError as error:
            raise KdkitError(
                f"stage {self.stage.name!r}: the weights of its best epoch no longer fit, because the tensors of a "
                f"network have changed since then: {error}; if a callback prunes weights, add masks in the recipe, "
                "with torch.nn.utils.prune.identity(layer, 'weight')"
            ) from error
        summary = {
            "best_epoch": self.progress.best.epoch,
            "value": self.progress.best.value,
            "epochs": len(self.history),
            "stopped_by": self._stopped_by(),
            "peak_memory_bytes": self.progress.peak_memory,
            "teacher_cache": self.progress.cache_entries or None,
        }
        self.folder.finish({name: value for name, value in summary.items() if value is not None})

    def _load_best(self) -> None:
        """Load the best weights into the networks. They keep their current weights if no epoch is finished."""
        for net in self.stage.objectives:
            if self.progress.best.weights:
                load_state(net.network, self.progress.best.weights[net.name])
                net.trained = True
            net.network.eval()

    def _describe_location(self) -> str:
        """Return the position in the stage at which user code failed."""
        if not self._has_begun:
            return f"stage {self.stage.name!r} before its first batch"
        position = self.progress.position
        part = f"batch {position.batches + 1}" if position.terms is None else "the validation"
        return f"stage {self.stage.name!r}, epoch {len(self.history) + 1}, {part}"
