"""Show how a fetch goes: files, bytes, speed and the time that is left."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Bars:
    """A bar over bytes on a terminal, and nothing elsewhere. `size` in bytes, None where it is not known.

    Any thread may tell it.
    """

    def __init__(self, console: Console, files: int, size: int | None, begun: int) -> None:
        self._files = files
        self._ended = 0
        self._begun = begun
        self._progress = Progress(
            TextColumn("{task.fields[files]}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=size, completed=begun, files=self._told())

    @property
    def bytes(self) -> int:
        """Return how many bytes came."""
        return round(self._progress.tasks[0].completed) - self._begun

    def moved(self, count: int) -> None:
        """Be told of bytes that came, or, below 0, that are lost again."""
        self._progress.advance(self._task, count)

    def ended(self) -> None:
        """Be told that a file came or failed."""
        self._ended += 1
        self._progress.update(self._task, files=self._told())

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def _told(self) -> str:
        return f"{self._ended:,} of {self._files:,} files"
