"""The working directory of the process, which relative paths refer to, and which user code may change."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def preserve_working_directory() -> Iterator[None]:
    """Restore the working directory at the end."""
    before = _current()
    try:
        yield
    finally:
        if before is not None and _current() != before:
            with suppress(OSError):  # it no longer exists
                os.chdir(before)


def _current() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109  # called at each step, and a Path takes longer
    except OSError:  # it was deleted
        return None
