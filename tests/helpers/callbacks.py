"""Callbacks for tests of runs: one records the events, others end a run before its end, so that it can be resumed."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import kdkit
from kdkit import Result, hookimpl


class Recorder:
    """Records the events of a run, in a list for each hook."""

    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.stages: list[Any] = []
        self.steps: list[Any] = []
        self.epochs: list[Any] = []
        self.ends: list[Any] = []

    @hookimpl
    def run_started(self, event: Any) -> None:
        self.runs.append(event)

    @hookimpl
    def stage_started(self, event: Any) -> None:
        self.stages.append(event)

    @hookimpl
    def step_ended(self, event: Any) -> None:
        self.steps.append(event)

    @hookimpl
    def epoch_ended(self, event: Any) -> None:
        self.epochs.append(event)

    @hookimpl
    def run_ended(self, event: Any) -> None:
        self.ends.append(event)

    @property
    def notices(self) -> list[str]:
        """The notices of the run, and then of each stage."""
        return [notice for event in [*self.runs, *self.stages] for notice in event.notices]


class Killed(BaseException):
    """Ends a run at once: nothing is saved after it, as if the process was killed."""


def kill_run(recipe: Any, folder: Path, kill: Any, **options: Any) -> None:
    """Run a recipe in a folder until one of the callbacks below kills it."""
    with pytest.raises(Killed):
        kdkit.run(recipe, out=folder, callbacks=[kill], **options)


def killed_and_resumed(recipe: Any, folder: Path, kill: Any, **options: Any) -> Result:
    """Kill a run, resume it, and return its result."""
    kill_run(recipe, folder, kill, **options)
    return kdkit.run(recipe, out=folder, resume=True, **options)


@dataclass(frozen=True)
class KillAfterEpoch:
    """Kills a run after an epoch and before its checkpoint, in any stage unless one is named."""

    epoch: int
    stage: str | None = None

    @hookimpl
    def epoch_ended(self, event: Any) -> None:
        if event.epoch == self.epoch and self.stage in (None, event.stage):
            raise Killed


@dataclass(frozen=True)
class _AtStep:
    """A step of a run: the first one of an epoch unless a batch is named, in any stage unless one is named."""

    epoch: int
    batch: int = 0
    stage: str | None = None

    def is_at(self, event: Any) -> bool:
        return (event.epoch, event.batch) == (self.epoch, self.batch) and self.stage in (None, event.stage)


class KillAtStep(_AtStep):
    """Kills a run at a step, of which no checkpoint is written."""

    @hookimpl
    def step_ended(self, event: Any) -> None:
        if self.is_at(event):
            raise Killed


class PressCtrlC(_AtStep):
    """Interrupts a run at a step, which writes a checkpoint before it ends."""

    @hookimpl
    def step_ended(self, event: Any) -> None:
        if self.is_at(event):
            signal.raise_signal(signal.SIGINT)
