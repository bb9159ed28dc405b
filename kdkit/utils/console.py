"""Create the console for tables and progress, and show the steps before a run prints anything."""

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from kdkit.utils.printable import LINE_CHARACTERS, encodable, is_first_process, printable

_WIDTH = 120  # columns of output to a file or a pipe, and the most columns of a table on a smaller terminal


class PrintableConsole(Console):
    """A rich console that escapes control characters in all texts; only its own styles and cursor movements remain.

    Characters that the encoding of its file lacks are escaped too; Python would raise an error.

    All output of kdkit goes through it or through `kdkit.utils.printable.echo`, so that no caller can forget to escape
    a name. Markup is a different matter: callers use `rich.markup.escape`, or print with markup=False.

    If the reader of the output closes the pipe, as `head` does, or the program closes the stream, it prints nothing
    more, and the program continues.
    """

    def on_broken_pipe(self) -> None:
        """Drop all later output; rich would end the program."""
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        # Otherwise Python would report the closed pipe again when it flushes this stream at its exit.
        os.dup2(null, self.file.fileno())
        os.close(null)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects. A table whose words would be cut is made wider than the terminal, which wraps its lines.

        Part of a number would be another number, and rich may shrink columns to nothing. The title of a table is a line
        above it, which rich would wrap, even within a word, at the width of the table.
        """
        tables = [item for item in objects if isinstance(item, Table)]
        titles = [(table, table.title) for table in tables if table.title]
        with self._widened(tables):
            try:
                for table, title in titles:
                    super().print(title, style=table.title_style or "table.title", soft_wrap=True)
                    table.title = None
                super().print(*objects, **options)
            except ValueError:
                if not self.file.closed:
                    raise
                self.quiet = True
            finally:
                for table, title in titles:
                    table.title = title

    @contextmanager
    def _widened(self, tables: Iterable[Table]) -> Iterator[None]:
        """Be as wide as the tables that would be cut, but at most 120 columns."""
        before = self._width  # None for the width of the terminal, which may change
        unlimited = self.options.update(max_width=10_000)
        for table in tables if self.width < _WIDTH else ():
            if any("…" in segment.text for segment in self.render(table)):  # rich marks what it cuts
                self._width = max(self.width, min(self.measure(table, options=unlimited).maximum, _WIDTH))
        try:
            yield
        finally:
            self._width = before

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape a text before it is measured and wrapped, so that columns of tables are wide enough."""
        return super().render_str(self._escaped(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape what did not pass through `render_str`, such as a `Text` that was created elsewhere."""
        for segment in super().render(renderable, options):
            # A control segment is a movement of the cursor by rich itself.
            yield segment if segment.control else segment._replace(text=self._escaped(segment.text))

    def _escaped(self, text: str) -> str:
        return encodable(printable(text, keep=LINE_CHARACTERS), self.encoding)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        """Drop the spaces at the ends of lines unless the output is a terminal; rich fills the lines of a table."""
        text = super()._render_buffer(buffer)
        return text if self.is_terminal else re.sub(r" +\n", "\n", text)


def make_console(*, stderr: bool = False, markup: bool = True) -> Console:
    """Return a console as wide as the terminal, or 120 columns wide if there is no terminal, so that tables fit.

    markup: False to print square brackets as they are.
    Under torchrun, all processes have the same results, and only the first one prints to stdout. In a notebook, the
    console prints colored text to the stream, so that all lines of a cell are one output. By default, rich displays
    each line as an output of its own, of which JupyterLab only shows the first 50.
    """
    # Without emoji a label such as ":x:" is printed unchanged.
    options: dict[str, Any] = {"highlight": False, "emoji": False, "stderr": stderr, "markup": markup}
    options["quiet"] = not stderr and not is_first_process()
    if _is_notebook():
        return PrintableConsole(**options, width=_WIDTH, force_jupyter=False, force_terminal=True, legacy_windows=False)
    console = PrintableConsole(**options)
    return console if console.is_terminal else PrintableConsole(**options, width=_WIDTH)


def _is_notebook() -> bool:
    """Whether the output is shown in a notebook, which has colors, but no cursor that can be moved."""
    return PrintableConsole().is_jupyter


def print_note(console: Console, note: str) -> None:
    """Print a note about the output next to it."""
    console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


class Status:
    """Shows the current step on stderr: a line that disappears on a terminal, otherwise a plain line for each step.

    It shows nothing in a notebook. enabled: False to show nothing. Use it as a context manager, which removes the line
    at the end.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        shown = enabled and is_first_process() and not _is_notebook()
        self._console = make_console(stderr=True) if shown else None
        self._live: Live | None = None

    def __enter__(self) -> "Status":
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def show(self, text: str, *, terminal_only: bool = False) -> None:
        """Show a step in place of the previous one. terminal_only: show nothing if there is no terminal."""
        if self._console is None:
            return
        if not self._console.is_terminal:
            if not terminal_only:
                self._console.print(f"{text} ...", markup=False, soft_wrap=True)
            return
        if self._live is None:
            # Without a redrawing thread, which would hold locks when a process is forked. Output of user code appears
            # above the line; stdout is redirected only if it is this terminal.
            stdout = sys.stdout
            redirect = stdout is not None and not stdout.closed and stdout.isatty()
            self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=redirect)
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
    if value != 0 and abs(value) < 5e-5:  # such as an error in a small unit
        return f"{value:.3g}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"
