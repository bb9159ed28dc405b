"""Signals that end a run: Ctrl-C (SIGINT), and SIGTERM, which schedulers send."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from kdkit.errors import Terminated
from kdkit.utils import collectives

_PAUSE = 1.0  # seconds between two messages of ranks about their signals
_DEFAULT_HANDLERS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


class Interrupts:
    """Handles signals while a run is in this context, and restores the handlers of the program at its end.

    In a step of training, or a batch of validation, a signal is only noted, and a checkpoint is written after it. A
    second signal, or one outside of training, ends the run at once: Ctrl-C by KeyboardInterrupt or what the handler of
    the program does, and SIGTERM by Terminated. A handler of the program for SIGTERM is kept.

    Several ranks end together, see `agree`. They ignore a second signal: torchrun repeats one that a scheduler has
    sent to its processes too, and ends those that take longer than half a minute.

    announce: prints that a signal is noted, since a step may take long; it is called with a line in the handler. None
    prints nothing. In a thread nothing is handled, since Python allows handlers in the main thread only.
    requested: the signal that was noted. at_once: whether a second one came, which waits for nothing.
    """

    def __init__(self, *, announce: Callable[[str], None] | None = None) -> None:
        self.announce = announce
        self.requested: signal.Signals | None = None
        self.at_once = False
        self._enabled = threading.current_thread() is threading.main_thread()
        self._several = collectives.is_distributed()
        self._deferred = self._is_ending = False
        self._previous: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._ignored = 0  # signals, in a worker process of a DataLoader
        self._updates, self._next_message, self._last_message = 0, 1, time.perf_counter()

    def __enter__(self) -> Self:
        for number, default in _DEFAULT_HANDLERS.items() if self._enabled else ():
            handler = signal.getsignal(number)
            # A process that is forked by the agent of torchrun inherits handlers that are meant for the agent.
            if getattr(handler, "__module__", "").startswith("torch.distributed.elastic"):
                handler = default
            if callable(handler) if number == signal.SIGINT else handler == signal.SIG_DFL:
                self._previous[number] = handler
                signal.signal(number, self._handle)
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

    def agree(self) -> bool:
        """Return whether a signal was noted, on any rank, and note it on all of them; all ranks call this."""
        if not self._several:
            return self.requested is not None
        now = time.perf_counter()
        updates = int(_PAUSE * self._updates / (now - self._last_message))  # in a pause, at the present speed
        messages = collectives.all_gather_objects([(self.requested, max(1, updates))])
        # The first rank decides when the next message is sent, since clocks differ.
        self._updates, self._next_message, self._last_message = 0, messages[0][1], now
        signals = [number for number, _ in messages if number is not None]
        if signals:  # otherwise one may have come meanwhile, which the next message has
            self.requested = signals[0]
        return bool(signals)

    def agree_after_update(self) -> bool:
        """Return what `agree` does, after an update; ranks send each other a message about once a second only."""
        if not self._several:
            return self.requested is not None
        self._updates += 1
        return self._updates >= self._next_message and self.agree()

    def end_run(self) -> None:
        """End the run by the signal that was noted."""
        number, self.requested = self.requested, None
        if number is not None:
            self._end(number, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._handle_in_worker(number)
        elif self._deferred and not self._is_ending:
            self.requested, self._is_ending = signal.Signals(number), True
            if self.announce is not None:
                second = "" if self._several else "; press Ctrl-C again to stop at once"
                self.announce(f"stopping after this batch{second}")
        elif not (self._several and self._is_ending):
            self.at_once = self._is_ending
            self._end(signal.Signals(number), frame)

    def _end(self, number: signal.Signals, frame: FrameType | None) -> None:
        self._is_ending = True
        handler = self._previous.get(number, _DEFAULT_HANDLERS[number])  # another rank may have handled it
        if not callable(handler):
            raise Terminated
        handler(number, frame)
        self._is_ending = self.at_once = False  # a handler of the program that does not end the run

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
