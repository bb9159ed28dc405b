"""The state of a run that the live view shows, updated from callback events."""

import math
from dataclasses import dataclass, field
from typing import Literal

from kdkit.plugins.events import EpochEnded, RunStarted, StageStarted, StepEnded
from kdkit.utils.printable import printable


@dataclass(slots=True)
class ShownTerm:
    """A term of the current stage.

    epochs: its weighted mean in each finished epoch. total, count: of the values read in the current epoch.
    """

    weight: float = math.nan
    epochs: list[float] = field(default_factory=list)
    total: float = 0.0
    count: int = 0
    last_mean: float = math.nan

    @property
    def value(self) -> float:
        """The mean over the batches read in the current epoch, or the mean of the last epoch if there are none."""
        return self.total / self.count if self.count else self.last_mean

    @property
    def curve(self) -> list[float]:
        """The weighted mean of each epoch, including the current one."""
        return [*self.epochs, self.weight * self.value] if self.count else self.epochs


@dataclass(slots=True)
class ShownStage:
    """A stage: its length, its position, and the monitored metric.

    epochs: None if the stage is waiting and its length is unknown. samples: per epoch, None if unknown.
    batch: the number of trained batches in the current epoch. best_epoch: counted from 1; 0 if it ended before the run
    was resumed.
    """

    name: str
    epochs: int | None = None
    state: Literal["waiting", "running", "done"] = "waiting"
    epoch: int = 0
    batch: int = 0
    batches: int = 0
    samples: int | None = None
    learning_rate: float = math.nan
    terms: dict[str, ShownTerm] = field(default_factory=dict)
    monitor: str = ""
    monitored: list[float] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0

    @property
    def share(self) -> float:
        """The fraction of all batches that are trained."""
        total = (self.epochs or 0) * self.batches
        return min(1.0, (self.epoch * self.batches + self.batch) / total) if total else 0.0


class RunProgress:
    """The state of a run. All times are in seconds on one clock; methods take the current time as `now`."""

    def __init__(self) -> None:
        self.stages: list[ShownStage] = []
        self.current: ShownStage | None = None
        self.epoch_began = 0.0
        self._first_batch = 0  # of the current epoch; above 0 if it was resumed
        self._epoch_seconds: float | None = None  # of the last whole epoch, including its validation
        self._rate: float | None = None  # batches per second

    def start(self, event: RunStarted) -> None:
        """List the stages."""
        lengths = [event.settings.get(f"{name}/epochs") for name in event.stages]
        self.stages = [
            ShownStage(printable(name), length if isinstance(length, int) else None)
            for name, length in zip(event.stages, lengths, strict=True)
        ]

    def start_stage(self, event: StageStarted, now: float) -> None:
        """Begin a stage. Earlier stages are done, even if a resumed run only loaded them."""
        for stage in self.stages[: event.index]:
            stage.state = "done"
        self.current = self.stages[event.index] = ShownStage(
            printable(event.name),
            event.epochs,
            "running",
            event.epoch,
            event.batch,
            event.batches,
            event.samples,
            event.learning_rate,
            {label: ShownTerm(weight) for label, weight in event.weights.items()},
            printable(event.monitor),
            best=event.best_value,
        )
        self._epoch_seconds = self._rate = None
        self._begin_epoch(event.batch, now)

    def step(self, event: StepEnded) -> None:
        """Advance by a batch, without reading its terms."""
        if self.current is not None:
            self.current.batch = event.batch + 1

    def read_step(self, event: StepEnded) -> None:
        """Add the terms of a batch to the means of the epoch. This may wait for the device."""
        if self.current is not None:
            self.current.learning_rate = float(event.learning_rate)
            for label, value in event.terms.items():
                term = self.current.terms.setdefault(label, ShownTerm())
                term.total += value
                term.count += 1

    def end_epoch(self, event: EpochEnded, now: float) -> None:
        """Add an epoch to the curves, and end the stage after its last epoch."""
        stage = self.current
        if stage is None:
            return
        for label, mean in event.terms.items():
            term = stage.terms.setdefault(label, ShownTerm())
            term.weight = event.weights.get(label, math.nan)
            term.epochs.append(term.weight * mean)
            term.total, term.count, term.last_mean = 0.0, 0, mean
        stage.monitor = printable(event.monitor)
        stage.monitored.append(event.monitor_value)
        if event.best:
            stage.best, stage.best_epoch = event.monitor_value, event.epoch + 1
        stage.learning_rate = event.learning_rate
        trained = stage.batches - self._first_batch
        if trained > 0:  # a resumed epoch is shorter than later ones
            self._epoch_seconds = (now - self.epoch_began) * stage.batches / trained
        stage.epoch, stage.batch = event.epoch + 1, 0
        if stage.epoch == stage.epochs:
            stage.state = "done"
        self._begin_epoch(0, now)

    def samples_per_second(self, now: float) -> float | None:
        """Return the training speed in this epoch, or batches per second if the number of samples is unknown."""
        stage = self.current
        if stage is None or stage.state != "running":
            return None
        trained, seconds = stage.batch - self._first_batch, now - self.epoch_began
        if trained > 0 and stage.batch < stage.batches and seconds > 0:  # no batches are trained during validation
            self._rate = trained / seconds
        if self._rate is None or stage.samples is None:
            return self._rate
        return self._rate * stage.samples / stage.batches

    def seconds_left(self, now: float) -> tuple[float | None, float | None]:
        """Return the estimated seconds until the current stage ends, and until all stages end; None if unknown.

        Epochs of later stages are assumed to take as long as those of the current one.
        """
        stage = self.current
        if stage is None or stage.epochs is None:
            return None, None
        epoch_seconds, elapsed = self._epoch_seconds, now - self.epoch_began
        if epoch_seconds is None:
            trained = stage.batch - self._first_batch
            if trained <= 0:
                return None, None
            epoch_seconds = elapsed * stage.batches / trained
            left = epoch_seconds * (stage.epochs - stage.epoch - stage.batch / stage.batches)
        else:
            epochs = stage.epochs - stage.epoch
            left = max(epoch_seconds * epochs - elapsed, epoch_seconds * max(0, epochs - 1))
        waiting = [other.epochs for other in self.stages if other.state == "waiting"]
        if any(epochs is None for epochs in waiting):
            return left, None
        return left, left + epoch_seconds * sum(epochs for epochs in waiting if epochs is not None)

    def _begin_epoch(self, batch: int, now: float) -> None:
        self._first_batch, self.epoch_began = batch, now
