"""Write the checkpoints of a stage during training, and end the run after a checkpoint if a signal requests it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kdkit.engine.run_context import RunContext
from kdkit.engine.stage.train_state import TrainState
from kdkit.engine.stage.training_batches import TrainingBatches
from kdkit.engine.storage.stage_folder import EndedEpoch, StageFolder
from kdkit.engine.training.stage_progress import BestCheckpoint, EpochPosition, StageProgress
from kdkit.errors import Terminated
from kdkit.utils import collectives
from kdkit.utils.modules import copy_state
from kdkit.utils.validation import parse_interval


class StageCheckpoints:
    """The checkpoints of one stage, and the end of the run after a signal, even if the run has no folder.

    While an epoch is trained, signals are deferred, see `Interrupts`. They end the run after an update of the weights,
    during a validation, or at the end of an epoch, always in the same order: the ranks agree that there is a signal,
    all of them save the state, and they exit when the first rank has written it.
    """

    def __init__(
        self,
        ctx: RunContext,
        folder: StageFolder,
        batches: TrainingBatches,
        progress: StageProgress,
        state: TrainState,
    ) -> None:
        self.ctx = ctx
        self.folder = folder
        self.batches = batches
        self.progress = progress
        self.state = state
        self.interval = CheckpointInterval(ctx.options.checkpoint_every)

    def resume(self) -> list[str]:
        """Load the last checkpoint if there is one, and return notices."""
        loaded, progress = self.folder.load_checkpoint(), self.progress
        if loaded is None:
            return []
        checkpoint, progress.history, notice = loaded
        with self.folder.reading(self.folder.path):
            self.state.load_state_dict(checkpoint["train_state"])
            progress.best = BestCheckpoint(**checkpoint["best"])
            if checkpoint["position"] is not None:
                progress.position = EpochPosition.from_state(checkpoint["position"])
                labels = progress.position.means.labels
                if labels and labels != tuple(term.label for term in self.state.module.terms):
                    raise ValueError(f"its terms are {', '.join(labels)}")
            progress.cache_entries = checkpoint["teacher_cache"]
        notices = [notice, self.batches.load_state_dict(checkpoint["stream"])]
        # The run may have been killed before it deleted the oldest weights, or after it saved those of an epoch that is
        # repeated now.
        done = len(progress.history)
        self.folder.delete_epochs(range(done - (self.ctx.options.keep_checkpoints or done), done))
        return [text for text in notices if text]

    def after_update(self) -> None:
        """Save the state if a checkpoint is due, or if a signal ends the run."""
        is_due, ends_run = self.interval.is_due(), self.ctx.interrupts.agree_after_update()
        if is_due or ends_run:
            self.save()
        if ends_run:
            self._end_run()

    @contextmanager
    def validating(self) -> Iterator[Callable[[], None]]:
        """Yield a function to call before each batch of a validation, which ends the run after a signal.

        All batches of the epoch are trained, so a resumed run only repeats the validation.
        """
        if collectives.is_distributed():
            # Several ranks exit together at the end of the epoch. The first rank writes a checkpoint as soon as it gets
            # the signal, in case they are killed before. Its content is gathered from all ranks now, because the state
            # does not change during the validation.
            unsaved = [self._content(self.progress.position)]

            def save_if_requested() -> None:
                if self.ctx.interrupts.requested and unsaved:
                    self.folder.save_checkpoint(self._batches_done(), unsaved.pop)

            yield save_if_requested
            return
        try:
            yield self.ctx.interrupts.end_run
        except (KeyboardInterrupt, Terminated):
            self.save()
            raise

    def after_epoch(self) -> None:
        """Save the state and the files of the finished epoch, and end the run if there was a signal."""
        self.interval.restart()
        history, kept = self.progress.history, self.ctx.options.keep_checkpoints
        ended = EndedEpoch(
            entry=history[-1],
            best_weights=self.progress.best.weights if history[-1]["best"] else {},
            weights={
                net.name: copy_state(self.state.validated_module(net))
                for net in (self.state.module.students if kept else ())
            },
            kept=range(len(history) - kept, len(history)),
        )
        self.folder.save_checkpoint(self._batches_done(), lambda: self._content(None), ended)
        if self.ctx.interrupts.agree():
            self._end_run()

    def finish(self) -> None:
        """Wait for the last checkpoint, and end the run if there was a signal, which must not interrupt the writing."""
        with self.ctx.interrupts.deferred():
            self.folder.wait()
            if self.ctx.interrupts.agree():
                self._end_run()

    def save(self) -> None:
        """Write a checkpoint at the current position in an epoch. All ranks must call this."""
        self.interval.restart()
        self.folder.save_checkpoint(self._batches_done(), lambda: self._content(self.progress.position))

    def _batches_done(self) -> int:
        """Return the number of batches trained in this stage, which orders its checkpoints."""
        return len(self.progress.history) * self.batches.per_epoch + self.progress.position.batches

    def _content(self, position: EpochPosition | None) -> dict[str, Any]:
        """Return the content of a checkpoint. All ranks must call this. position: None at the end of an epoch."""
        best = self.progress.best
        return {
            "train_state": self.state.state_dict(),
            "stream": self.batches.state_dict(),
            "teacher_cache": self.progress.cache_entries,
            "best": {"epoch": best.epoch, "value": best.value, "weights": best.weights},
            "position": None if position is None else position.state_dict(self.ctx.device),
        }

    def _end_run(self) -> None:
        """End the run by the recorded signal. Several ranks exit after the first one has written the checkpoint."""
        if collectives.is_distributed():
            self.folder.wait_or_warn()
            collectives.barrier()
        self.ctx.interrupts.end_run()


class CheckpointInterval:
    """Decides after which updates of an epoch a checkpoint is written. The decision is the same on all ranks.

    every: a number of updates, or a time such as "30s", "10min" or "2h"; 0 for checkpoints at the end of epochs only.
    Raises RecipeError for other values.
    """

    def __init__(self, every: int | str) -> None:
        self.updates, self.seconds = parse_interval(every)
        self._several = collectives.is_distributed()
        self.restart()

    def restart(self) -> None:
        """Begin a new interval, after a checkpoint or at the start of an epoch."""
        self._done = 0
        self._began = time.perf_counter()
        self._next_agreement = 1

    def is_due(self) -> bool:
        """Whether to write a checkpoint after this update."""
        self._done += 1
        if self.updates:
            return self._done >= self.updates
        if not self.seconds:
            return False
        if not self._several:
            return time.perf_counter() - self._began >= self.seconds
        # The first rank decides, because clocks differ. It does not decide after every update, which would need a
        # message each time.
        if self._done < self._next_agreement:
            return False
        elapsed = time.perf_counter() - self._began
        remaining = (self.seconds - elapsed) / elapsed * self._done  # updates at the current speed
        is_due, self._next_agreement = collectives.broadcast((remaining <= 0, self._done + max(1, int(remaining))))
        return is_due
