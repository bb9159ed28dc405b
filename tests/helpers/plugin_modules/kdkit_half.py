"""A plugin of which one hook cannot import what it registers."""

from collections.abc import Callable
from typing import Any

from kdkit import hookimpl


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Fail, as if a package was missing."""
    import a_package_that_does_not_exist  # noqa: F401


@hookimpl
def register_ramps(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Register a ramp, which is there all the same."""
    register("half", lambda: lambda progress: 0.5)
