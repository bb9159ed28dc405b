"""A loss, a schedule, a watcher and a command of somebody else's."""

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
    """A distance of outputs."""
    from torch.nn.functional import l1_loss

    def distance(student: Any, target: Any) -> Any:
        """Mean absolute difference."""
        return l1_loss(student, target)

    register("distance", distance)


@hookimpl
def register_schedules(register: Register) -> None:
    """Two nets, one after the other."""
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
    """A greeting."""

    @cli.command()
    @click.argument("name")
    def greet(name: str) -> None:
        """Greet somebody."""
        click.echo(f"hello, {name}")


def write(**line: object) -> None:
    if "KDKIT_GOOD_LOG" in os.environ:
        with Path(os.environ["KDKIT_GOOD_LOG"]).open("a") as file:
            file.write(json.dumps(line) + "\n")


@hookimpl
def run_started(event: Any) -> None:
    """Write a line."""
    write(told="run_started", stages=event.stages, seed=event.seed)


@hookimpl
def stage_started(event: Any) -> None:
    """Write a line."""
    write(told="stage_started", index=event.index, name=event.name, epochs=event.epochs, batches=event.batches)


@hookimpl
def step_ended(event: Any) -> None:
    """Write a line."""
    write(told="step_ended", stage=event.stage, epoch=event.epoch, batch=event.batch, terms=dict(event.terms))


@hookimpl
def epoch_ended(event: Any) -> None:
    """Write a line."""
    write(told="epoch_ended", stage=event.stage, epoch=event.epoch, terms=dict(event.terms), score=event.monitor_value)


@hookimpl
def run_ended(event: Any) -> None:
    """Write a line."""
    metrics = {
        net: {name: compute_metrics.value for name, compute_metrics in each.items()}
        for net, each in event.metrics.items()
    }
    write(told="run_ended", metrics=metrics, error=None if event.error is None else str(event.error))
