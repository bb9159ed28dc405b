"""Signals that end a run: Ctrl-C (SIGINT), and SIGTERM, which schedulers send."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from kdkit.errors import Terminated


class Interrupts:
    """Handles signals while a run is in this context, and restores the handlers of the program at its end.

    In a step of training, or a batch of validation, a signal is only noted, and a checkpoint is written after it. A
    second signal, or one outside of training, ends the run at once: Ctrl-C by KeyboardInterrupt or what the handler of
    the program does, and SIGTERM by Terminated. A handler of the program for SIGTERM is kept.

    announce: prints that a signal is noted, since a step may take long; it is called with a line in the handler. None
    prints nothing. enabled: False does nothing. In a thread it does nothing either, since Python allows handlers in the
    main thread only.
    """

    def __init__(self, *, enabled: bool = True, announce: Callable[[str], None] | None = None) -> None:
        self.announce = announce
        self.requested: signal.Signals | None = None
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._deferred = False
        self._previous: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._ignored = 0  # signals, in a worker process of a DataLoader

    def __enter__(self) -> Self:
        if self._enabled:
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler) if number == signal.SIGINT else handler == signal.SIG_DFL:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Note a signal instead of ending the run; the training loop ends it."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def end_run(self) -> None:
        """End the run by the signal that was noted."""
        number, self.requested = self.requested, None
        if number is not None:
            self._end(number, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._handle_in_worker(number)
        elif self._deferred and self.requested is None:
            self.requested = signal.Signals(number)
            if self.announce is not None:
                self.announce("stopping after this batch; press Ctrl-C again to stop at once")
        else:
            self._end(signal.Signals(number), frame)

    def _end(self, number: signal.Signals, frame: FrameType | None) -> None:
        handler = self._previous[number]
        if callable(handler):
            handler(number, frame)
        else:
            raise Terminated

    def _handle_in_worker(self, number: int) -> None:
        """Leave it to the main process to end its workers, which it asks to end, and then sends SIGTERM.

        A terminal and a scheduler send their signal to the workers too. If these ended first, the main process would
        raise an error.
        """
        self._ignored += number == signal.SIGTERM
        if self._ignored > 1:
            os._exit(128 + number)


def announce_on_stderr(text: str) -> None:
    """Print a line to stderr, without the buffers of Python, which a signal may have interrupted."""
    os.write(2, f"\n{text}\n".encode())
