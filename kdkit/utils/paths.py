"""Paths that users pass, and the working directory that relative ones refer to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder in the place of a leading `~`, which shells leave in `--out=~/runs`."""
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


@contextmanager
def preserve_working_directory() -> Iterator[None]:
    """Restore the working directory at the end, which user code may change."""
    before = working_directory()
    try:
        yield
    finally:
        if before is not None and working_directory() != before:
            with suppress(OSError):  # it no longer exists
                os.chdir(before)


def working_directory() -> str | None:
    """Return the working directory, or None if it was deleted."""
    try:
        return os.getcwd()  # noqa: PTH109  # called at each step, and a Path takes longer
    except OSError:
        return None
