"""Keep the live view of a run on a terminal up to date, at a negligible cost."""

import contextlib
import logging
import os
import sys
import time
from typing import Any

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType

from kdkit.engine.display.progress import RunProgress
from kdkit.engine.display.view import RunView
from kdkit.plugins.events import StepEnded

_INTERVAL = 0.25  # least seconds between two redraws
_SHARE = 0.01  # largest fraction of the time that redraws may take
_READ_INTERVAL = 1.0  # seconds between two reads of terms, which wait for the GPU to finish its steps


def can_redraw(console: Console) -> bool:
    """Whether the live view can be shown on a console, which must be an interactive terminal with colors.

    Otherwise only lines are printed: to files, pipes and notebooks, in CI, on a dumb terminal, and with NO_COLOR.
    """
    # With FORCE_COLOR, rich treats any file as a terminal, and `make_console` treats a notebook as one.
    is_terminal = console.is_interactive and console.file.isatty()
    is_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return is_terminal and not console.no_color and not is_ci


class LiveDisplay(RenderHook):
    """Shows the state of a run below the printed lines. It has no thread: training steps redraw it when it is due.

    A thread could hold locks while a DataLoader forks its workers, and could not read the terms of a step on a GPU.
    """

    def __init__(self, console: Console) -> None:
        self.progress = RunProgress()
        self._console = console
        self._view = RunView(self.progress, time.monotonic)
        self._live: Live | None = None
        self._loggers: list[tuple[logging.StreamHandler[Any], Any]] = []  # redirected handlers with their old streams
        self._next_draw = 0.0
        self._next_read = 0.0
        self._cost = float("inf")  # seconds of the last redraw
        self._is_drawing = False
        self._announcement: str | None = None

    @property
    def is_shown(self) -> bool:
        """Whether the view is on the terminal."""
        return self._live is not None

    def start(self) -> None:
        """Show the view, or redraw it if it is already shown."""
        if self._live is not None:
            self.draw()
            return
        # Output of user code appears above the view, but a stream that is not a terminal is not redirected.
        streams = sys.stdout, sys.stderr
        self._live = Live(
            self._view,
            console=self._console,
            auto_refresh=False,
            transient=True,
            vertical_overflow="crop",
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start()
        self._console.push_render_hook(self)
        for stream, proxy in zip(streams, (sys.stdout, sys.stderr), strict=True):
            if proxy is not stream:
                self._redirect_logging(stream, proxy)
        self.draw()

    def step(self, event: StepEnded) -> None:
        """Advance by a batch, and redraw the view if it is due, or if a possibly long validation begins."""
        self.progress.step(event)
        now = time.monotonic()
        if now < self._next_draw and not self._begins_long_validation(now):
            return
        if now >= self._next_read:
            self.progress.read_step(event)
            # The interval starts after the wait for the device.
            self._next_read = time.monotonic() + _READ_INTERVAL
        self.draw()

    def draw(self) -> None:
        """Redraw the view."""
        if self._live is None:
            return
        began = time.monotonic()
        self._is_drawing = True
        try:
            self._live.refresh()
        finally:
            self._is_drawing = False
        now = time.monotonic()
        # The smaller cost of two redraws, because other programs may have delayed one of them.
        cost, self._cost = min(self._cost, now - began), now - began
        self._next_draw = now + max(_INTERVAL, cost / _SHARE)
        if self._announcement is not None:
            text, self._announcement = self._announcement, None
            self.announce(text)

    def announce(self, text: str) -> None:
        """Print a line above the view from a signal handler, or after the redraw that the signal interrupted."""
        self._announcement = text
        if self._is_drawing:
            return
        # A buffered file raises RuntimeError if the signal interrupted a write; the next redraw then prints the line.
        with contextlib.suppress(RuntimeError):
            self._console.print(text, markup=False)
            self._announcement = None

    def stop(self) -> None:
        """Remove the view."""
        if self._live is not None:
            self._console.pop_render_hook()
            self._live.stop()
            self._live = None
        for handler, stream in self._loggers:
            handler.setStream(stream)
        self._loggers.clear()

    def _begins_long_validation(self, now: float) -> bool:
        """Whether the last batch of an epoch was trained, and the epoch is so long that one more redraw is cheap."""
        stage = self.progress.current
        if stage is None or stage.batch < stage.batches:
            return False
        return now - self.progress.epoch_began >= max(_READ_INTERVAL, self._cost / _SHARE)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Erase the rows that wrapped lines of the view take up if the terminal has become narrower.

        Terminals wrap lines that no longer fit, but rich still counts each as one row.
        """
        rows = self._view.rows_added(self._console.width)
        up = ((ControlType.CARRIAGE_RETURN,), (ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
        return [Control(*up * rows), *renderables] if rows else renderables

    def _redirect_logging(self, stream: Any, proxy: Any) -> None:
        """Redirect the log handlers of a stream, so that they write above the view too."""
        for logger in (logging.root, *logging.root.manager.loggerDict.values()):
            for handler in getattr(logger, "handlers", ()):
                # logging's _StderrHandler has a property `stream` instead, and follows sys.stderr by itself.
                if not isinstance(handler, logging.StreamHandler) or "stream" not in vars(handler):
                    continue
                # A handler that was created while a Status was shown has the proxy of that status.
                if stream is getattr(handler.stream, "rich_proxied_file", handler.stream):
                    self._loggers.append((handler, handler.setStream(proxy)))
