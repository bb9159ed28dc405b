"""A plugin with a hook of its own invention, beside one that is right."""

from collections.abc import Callable
from typing import Any

from kdkit import hookimpl


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """A loss that must not appear, since its plugin is left out."""
    register("of_the_misspelt", lambda student, target: (student - target).mean())


@hookimpl
def register_loses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """There is no such hook."""
