"""A third-party plugin with a loss, a schedule, a command, and callbacks that write a log."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from kdkit import hookimpl

Register = Callable[[str, Callable[..., Any]], None]


@hookimpl
def register_losses(register: Register) -> None:
    """Register a distance between outputs."""
    from torch.nn.functional import l1_loss

    def distance(student: Any, target: Any) -> Any:
        """Mean absolute difference."""
        return l1_loss(student, target)

    register("distance", distance)


@hookimpl
def register_schedules(register: Register) -> None:
    """Register a schedule of two nets, one after the other."""
    from kdkit import Match, Net, Stage, Training, Truth

    class Pair:
        """A teacher alone, then a student with it."""

        def __init__(
            self, teacher: Net[Any], student: Net[Any], truth: Truth, kd_loss: Any, training: Training
        ) -> None:
            self.nets = teacher, student
            self.truth, self.kd_loss, self.training = truth, kd_loss, training

        def stages(self) -> Sequence[Stage]:
            teacher, student = self.nets
            guided = self.truth + Match(teacher, self.kd_loss)
            return [Stage({teacher: self.truth}, self.training), Stage({student: guided}, self.training)]

    register("pair", Pair)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add a command that greets."""

    @cli.command()
    @click.argument("name")
    def greet(name: str) -> None:
        """Greet a person."""
        click.echo(f"hello, {name}")


def write(**line: object) -> None:
    """Append a line of JSON to the log, if the test names one."""
    if "KDKIT_GOOD_LOG" in os.environ:
        with Path(os.environ["KDKIT_GOOD_LOG"]).open("a") as file:
            file.write(json.dumps(line) + "\n")


@hookimpl
def run_started(event: Any) -> None:
    """Log the event."""
    write(hook="run_started", stages=event.stages, seed=event.seed)


@hookimpl
def stage_started(event: Any) -> None:
    """Log the event."""
    write(hook="stage_started", index=event.index, name=event.name, epochs=event.epochs, batches=event.batches)


@hookimpl
def step_ended(event: Any) -> None:
    """Log the event."""
    write(hook="step_ended", stage=event.stage, epoch=event.epoch, batch=event.batch, terms=dict(event.terms))


@hookimpl
def epoch_ended(event: Any) -> None:
    """Log the event."""
    terms, monitor_value = dict(event.terms), event.monitor_value
    write(hook="epoch_ended", stage=event.stage, epoch=event.epoch, terms=terms, monitor_value=monitor_value)


@hookimpl
def run_ended(event: Any) -> None:
    """Log the event."""
    metrics = {net: {name: result.value for name, result in results.items()} for net, results in event.metrics.items()}
    write(hook="run_ended", metrics=metrics, error=None if event.error is None else str(event.error))
