"""Create the console to which tables and progress are printed, and show the steps before a run prints anything."""

import math
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from kdkit.utils.printable import LINE_CHARACTERS, is_first_process, printable

_WIDTH = 120  # columns of output that goes to a file or a pipe, and at most of a table on a smaller terminal


class PrintableConsole(Console):
    """A rich console that escapes control characters in all texts; only its own styles and cursor movements remain.

    All output of kdkit goes through it or through `kdkit.utils.printable.echo`, so that no caller can forget to escape
    a name. Markup is a different matter: callers use `rich.markup.escape`, or print with markup=False.

    If the reader of the output leaves, as `head` does, it prints nothing more, and the program continues.
    """

    def on_broken_pipe(self) -> None:
        """Drop all later output; rich would end the program."""
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        # Otherwise Python would report the closed pipe again when it flushes this stream at its exit.
        os.dup2(null, self.file.fileno())
        os.close(null)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects; a table of which words would be cut is wider than the terminal, which then wraps its lines.

        Part of a number would be another number, and rich shrinks some columns to nothing.
        """
        width = self._width  # None for that of the terminal, which may change
        tables = [item for item in objects if isinstance(item, Table)] if self.width < _WIDTH else []
        # rich marks what it cuts.
        cut = [table for table in tables if any("…" in segment.text for segment in self.render(table))]
        unlimited = self.options.update(max_width=10_000)
        self._width = max([self.width, *(min(self.measure(item, options=unlimited).maximum, _WIDTH) for item in cut)])
        try:
            super().print(*objects, **options)
        finally:
            self._width = width

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape a text before it is measured and wrapped, so that columns of tables are wide enough."""
        return super().render_str(printable(text, keep=LINE_CHARACTERS), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape what did not pass through `render_str`: a `Text` that was made elsewhere."""
        for segment in super().render(renderable, options):
            # A control segment is a movement of the cursor by rich itself.
            is_clean = segment.control or segment.text.isprintable()
            yield segment if is_clean else segment._replace(text=printable(segment.text, keep=LINE_CHARACTERS))

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        """Drop the spaces at the ends of lines unless the output is a terminal; rich fills the lines of a table."""
        text = super()._render_buffer(buffer)
        return text if self.is_terminal or self.is_jupyter else re.sub(r" +\n", "\n", text)


def make_console(*, stderr: bool = False, markup: bool = True) -> Console:
    """Return a console as wide as the terminal, or 120 columns wide if there is no terminal, so that tables fit.

    markup: False to print square brackets as they are.
    Of the processes of torchrun, which have the same results, only the first one prints to stdout.
    """
    # Without emoji a label such as ":x:" is printed as it is.
    options: dict[str, Any] = {"highlight": False, "emoji": False, "stderr": stderr, "markup": markup}
    options["quiet"] = not stderr and not is_first_process()
    console = PrintableConsole(**options)
    return console if console.is_terminal or console.is_jupyter else PrintableConsole(**options, width=_WIDTH)


def print_note(console: Console, note: str) -> None:
    """Print a note on what is printed next to it."""
    console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


class Status:
    """Shows the current step on stderr: a line that disappears on a terminal, otherwise a plain line for each step.

    enabled: False to show nothing. It is used as a context, which removes the line at its end.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._console = make_console(stderr=True) if enabled and is_first_process() else None
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


def format_number(value: float) -> str:
    """Return a number as tables and the live view show it, in at most nine characters; "-" for NaN."""
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"
