"""Handle the signals that end a run: Ctrl-C (SIGINT), and SIGTERM, which schedulers send."""

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

_PAUSE = 1.0  # seconds between two messages in which ranks exchange their signals
_DEFAULT_HANDLERS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


class Interrupts:
    """Handles signals while a run is in this context, and restores the program's handlers at the end.

    During a training step or a validation batch, a signal is only recorded, and a checkpoint is written afterwards. A
    second signal, or one outside of training, ends the run at once: Ctrl-C with KeyboardInterrupt or the program's own
    handler, and SIGTERM with Terminated. If the program has its own handler for SIGTERM, it is kept.

    Several ranks end together, see `agree`. They ignore a second signal: if a scheduler signals all processes, torchrun
    sends the signal to them again, and kills those that take longer than half a minute.

    announce: called in the handler with a line to print when a signal is recorded, because a step may take long. None
    prints nothing. In a thread nothing is handled, because Python allows handlers in the main thread only.
    requested: the recorded signal. at_once: whether a second one came, after which nothing is waited for.
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
        self._ignored = 0  # the number of SIGTERM signals in a worker process of a DataLoader
        self._updates, self._next_message, self._last_message = 0, 1, time.perf_counter()

    def __enter__(self) -> Self:
        if not self._enabled:
            return self
        for number, default in _DEFAULT_HANDLERS.items():
            handler = signal.getsignal(number)
            # A process that torchrun's agent forks inherits handlers that are meant for the agent.
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
        """Record a signal in this context instead of ending the run; the training loop ends the run later."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def agree(self) -> bool:
        """Return whether any rank has recorded a signal, and record it on all ranks. All ranks must call this."""
        if not self._several:
            return self.requested is not None
        now = time.perf_counter()
        updates = int(_PAUSE * self._updates / (now - self._last_message))  # in a pause, at the current speed
        messages = collectives.all_gather_objects([(self.requested, max(1, updates))])
        # The first rank decides when the next message is sent, because clocks differ.
        self._updates, self._next_message, self._last_message = 0, messages[0][1], now
        signals = [number for number, _ in messages if number is not None]
        if signals:  # otherwise a signal may have just arrived; the next message contains it
            self.requested = signals[0]
        return bool(signals)

    def agree_after_update(self) -> bool:
        """Return the result of `agree` after an update. Ranks only exchange messages about once a second."""
        if not self._several:
            return self.requested is not None
        self._updates += 1
        return self._updates >= self._next_message and self.agree()

    def end_run(self) -> None:
        """End the run as the recorded signal requests."""
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
            # If this interrupts a finalizer, in which Python ignores exceptions, the next batch ends the run.
            self.requested = signal.Signals(number)
            self._end(self.requested, frame)

    def _end(self, number: signal.Signals, frame: FrameType | None) -> None:
        self._is_ending = True
        handler = self._previous.get(number, _DEFAULT_HANDLERS[number])  # the signal may come from another rank
        if not callable(handler):
            raise Terminated
        handler(number, frame)
        self.requested = None  # the program's handler does not end the run
        self._is_ending = self.at_once = False

    def _handle_in_worker(self, number: int) -> None:
        """Ignore Ctrl-C and the first SIGTERM in a worker process: the main process ends its workers.

        It asks them to end, and then sends SIGTERM. Terminals and schedulers send their signal to the workers too, but
        if workers ended first, the main process would raise an error.
        """
        self._ignored += number == signal.SIGTERM
        if self._ignored > 1:
            os._exit(128 + number)


def announce_on_stderr(text: str) -> None:
    """Print a line to stderr without Python's buffers: the signal may have interrupted a write to them."""
    os.write(2, f"\n{text}\n".encode())
