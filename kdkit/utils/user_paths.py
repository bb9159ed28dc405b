"""Paths that users pass, in which a leading `~` is the home folder: shells leave it as it is in `--out=~/runs`."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import click


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return the path with the home folder in the place of a leading `~`."""
    path = Path(path)
    with suppress(RuntimeError):  # there is no such user
        path = path.expanduser()
    return path


class UserPath(click.Path):
    """The type of a path on the command line. It becomes a Path."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. Fails if it is not of the required kind."""
        return super().convert(user_path(value), param, ctx)
