"""A plugin with a hook that takes an argument which does not exist."""

from kdkit import hookimpl


@hookimpl
def register_losses(registry: object) -> None:
    """Never called."""
