"""Show the progress of a download: files, bytes, speed and remaining time."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class DownloadProgress:
    """A progress bar over bytes, shown on a terminal only. Any thread may update it.

    size: total bytes, None if unknown. resumed: bytes that exist from an earlier run.
    """

    def __init__(self, console: Console, files: int, size: int | None, resumed: int) -> None:
        self._files = files
        self._finished = 0
        self._resumed = resumed
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
        self._task = self._progress.add_task("", total=size, completed=resumed, files=self._file_count())

    @property
    def bytes(self) -> int:
        """The number of bytes fetched in this run."""
        return round(self._progress.tasks[0].completed) - self._resumed

    def add_bytes(self, count: int) -> None:
        """Count bytes that were received, or, if negative, discarded."""
        self._progress.advance(self._task, count)  # rich updates under a lock

    def add_file(self) -> None:
        """Count a file that was fetched or failed."""
        self._finished += 1
        self._progress.update(self._task, files=self._file_count())

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def _file_count(self) -> str:
        return f"{self._finished:,} of {self._files:,} files"
