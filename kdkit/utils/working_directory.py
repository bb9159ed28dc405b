"""The working directory of the process, which relative paths refer to, and which user code may change."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def preserve_working_directory() -> Iterator[None]:
    """Restore the working directory at the end."""
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
