"""Create the console to which tables and progress are printed, and show the steps before a run prints anything."""

import os
import sys

from rich.console import Console
from rich.live import Live
from rich.text import Text

_WIDTH = 120  # columns of output that goes to a file or a pipe


class _RunConsole(Console):
    """A console whose reader may leave, as `head` does: then it prints nothing more, and the program continues."""

    def on_broken_pipe(self) -> None:
        """Drop all later output; rich would end the program."""
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        # Otherwise Python would report the closed pipe again when it flushes this stream at its exit.
        os.dup2(null, self.file.fileno())
        os.close(null)


def make_console() -> Console:
    """Return a console as wide as the terminal, or 120 columns wide if there is no terminal, so that tables fit."""
    console = _RunConsole(highlight=False, emoji=False)  # without emoji a label such as ":x:" is printed as it is
    has_width = console.is_terminal or console.is_jupyter
    return console if has_width else _RunConsole(highlight=False, emoji=False, width=_WIDTH)


class Status:
    """Shows the current step on stderr: a line that disappears on a terminal, otherwise a plain line for each step.

    enabled: False to show nothing. It is used as a context, which removes the line at its end.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        # Of the processes of torchrun, the first one prints for all; their group may not exist yet.
        is_first = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"
        self._console = _RunConsole(stderr=True, highlight=False, emoji=False) if enabled and is_first else None
        self._live: Live | None = None

    def __enter__(self) -> "Status":
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def show(self, text: str, *, terminal_only: bool = False) -> None:
        """Show a step in place of the one before. terminal_only: leave it out if there is no terminal."""
        if self._console is None or self._console.is_jupyter:
            return
        if not self._console.is_terminal:
            if not terminal_only:
                self._console.print(f"{text} ...", markup=False, soft_wrap=True)
            return
        if self._live is None:
            # Without a thread that redraws it, which would hold locks when a process is forked. What user code prints
            # meanwhile appears above the line, but stdout stays stdout if it is not this terminal.
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty()
            )
            self._live.start()
        self._live.update(Text(f"{text} ...", style="dim"), refresh=True)

    def stop(self) -> None:
        """Remove the line."""
        if self._live is not None:
            self._live.stop()
            self._live = None
