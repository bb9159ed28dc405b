"""A plugin that registers a loss and a command which kdkit has already, and prints."""

from collections.abc import Callable
from typing import Any

import click

from kdkit import hookimpl

print("a line that must not be part of the output of a command")


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Register a second soft_targets."""
    register("soft_targets", lambda student, target: (student - target).mean())
    register("taken", lambda student, target: (student - target).mean())


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add a second `kdkit run`."""

    @cli.command()
    def run() -> None:
        """Never called."""
