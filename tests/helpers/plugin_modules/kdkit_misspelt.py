"""A plugin with a misspelt hook next to a valid one."""

from collections.abc import Callable
from typing import Any

from kdkit import hookimpl


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Register a loss that must not appear, since the whole plugin is skipped."""
    register("of_the_misspelt", lambda student, target: (student - target).mean())


@hookimpl
def register_loses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Implement a hook that does not exist."""
