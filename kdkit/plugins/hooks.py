"""The hook specifications: every point at which a plugin can extend kdkit.

A plugin implements a hook with a function of the same name that is decorated with `@kdkit.hookimpl`. The function may
leave out arguments that it does not use.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pluggy

from kdkit.plugins.events import EpochEnded, RunEnded, RunStarted, StageStarted, StepEnded

hookspec = pluggy.HookspecMarker("kdkit")
hookimpl = pluggy.HookimplMarker("kdkit")

Register = Callable[[str, Callable[..., Any]], None]
RegisterTemplate = Callable[[str, Path], None]


# Registration hooks, called before a recipe runs. Implementations import inside the function, so that `kdkit --help`
# does not wait for torch.
@hookspec
def register_losses(register: Register) -> None:
    """Register losses: functions `(student, target) -> scalar`, or classes and functions that create one."""


@hookspec
def register_taps(register: Register) -> None:
    """Register taps: module -> tap, which captures a tensor while the module runs."""


@hookspec
def register_schedules(register: Register) -> None:
    """Register schedules: nets and guidance -> an object whose `stages()` returns stages."""


@hookspec
def register_ramps(register: Register) -> None:
    """Register ramps: options -> a function from progress in [0, 1] to a factor."""


@hookspec
def register_models(register: Register) -> None:
    """Register models: options -> `nn.Module`."""


@hookspec
def register_datasets(register: Register) -> None:
    """Register data sets: options -> `Data`."""


@hookspec
def register_metrics(register: Register) -> None:
    """Register metrics: options -> `Metric`."""


@hookspec
def register_loggers(register: Register) -> None:
    """Register loggers: options -> an object with callback hooks, for `kdkit run FILE --log NAME`."""


@hookspec
def register_exporters(register: Register) -> None:
    """Register exporters: subclasses of `kdkit.export.Exporter`, for `kdkit export RUN --to NAME`."""


@hookspec
def register_templates(register: RegisterTemplate) -> None:
    """Register recipe files of the package, by name and path, which `kdkit new recipe NAME` copies."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to the command line."""


@hookspec
def report_sections(report: Any) -> Any:
    """Add sections to `kdkit report`: return a list of `kdkit.report.Section(title, html)`.

    report: a `kdkit.report.Report`, which has the runs with their records, metrics and predictions.
    """


# Callback hooks. Return values are ignored. An event holds plain values, so a callback cannot change the run. It can
# only end a stage, by raising StopTraining, or the run, by raising a KdkitError; other errors become warnings.
@hookspec
def run_started(event: RunStarted) -> None:
    """Called when a run starts, after all checks."""


@hookspec
def stage_started(event: StageStarted) -> None:
    """Called when a stage starts or resumes."""


@hookspec
def step_ended(event: StepEnded) -> None:
    """Called after the training step of each batch. May raise StopTraining to end the stage after the epoch."""


@hookspec
def epoch_ended(event: EpochEnded) -> None:
    """Called after each epoch and its validation. May raise StopTraining to end the stage."""


@hookspec
def run_ended(event: RunEnded) -> None:
    """Called when a run ends, even after an error."""
