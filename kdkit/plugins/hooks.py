"""Every place a plugin may join in. Write a function of the same name and arguments under `@kdkit.hookimpl`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:  # for readers and type checkers only: events.py needs torch, which `kdkit --help` does without
    import click

    from kdkit.plugins.events import EpochEnded, RunEnded, RunStarted, StageStarted, StepEnded

hookspec = pluggy.HookspecMarker("kdkit")
hookimpl = pluggy.HookimplMarker("kdkit")

Register = Callable[[str, Callable[..., Any]], None]


# Shelves, filled before a recipe is read. Import what you register inside the function, so that listing stays fast.
@hookspec
def register_losses(register: Register) -> None:
    """Put losses on the shelf: `(student, target) -> scalar`, or classes and functions that make one."""


@hookspec
def register_taps(register: Register) -> None:
    """Put taps on the shelf: `module -> tensor`."""


@hookspec
def register_schedules(register: Register) -> None:
    """Put schedules on the shelf: nets and a way of guiding -> stages."""


@hookspec
def register_ramps(register: Register) -> None:
    """Put ramps on the shelf: progress in [0, 1] -> factor."""


@hookspec
def register_models(register: Register) -> None:
    """Put networks on the shelf: options -> `nn.Module`."""


@hookspec
def register_datasets(register: Register) -> None:
    """Put data sets on the shelf: options -> Data."""


@hookspec
def register_metrics(register: Register) -> None:
    """Put scores on the shelf: options -> Score."""


@hookspec
def register_commands(cli: "click.Group") -> None:
    """Add commands to the command line."""


# Watching: what is returned is not looked at, and what is told are plain values.
@hookspec
def run_started(event: "RunStarted") -> None:
    """Be told that a run begins."""


@hookspec
def stage_started(event: "StageStarted") -> None:
    """Be told that a stage begins or goes on."""


@hookspec
def step_ended(event: "StepEnded") -> None:
    """Be told of every batch that was learned from."""


@hookspec
def epoch_ended(event: "EpochEnded") -> None:
    """Be told of every epoch."""


@hookspec
def run_ended(event: "RunEnded") -> None:
    """Be told that a run ended, also after an error."""
