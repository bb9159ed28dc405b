"""Decide how long to wait before the next request to a server.

urllib3.util.Retry is not suitable: its waits cannot be interrupted and delay one request instead of all threads, and it
does not retry a response that breaks off in the middle of a file.
"""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from time import monotonic

MAX_TRIES = 6  # in a row without a new byte
FIRST_WAIT = 1.0  # s before the second try, doubled before each further one
MAX_WAIT = 60.0  # s between two tries
MAX_RETRY_AFTER = 600.0  # s that a Retry-After header may request; for a longer wait, the user must decide


class Stopped(Exception):  # noqa: N818 -- not an error: the run ends, and its threads with it
    """The run was stopped while this thread was working."""


@dataclass(slots=True)
class Backoff:
    """Exponential back-off with jitter for one file, and a pause for all files if the server requests one."""

    stop: Event
    _resume_at: float = 0.0
    _lock: Lock = field(default_factory=Lock)

    def wait_for_pause(self) -> None:
        """Return when no pause is in effect, not even one that another thread begins meanwhile. Raises Stopped."""
        while True:
            remaining = self._resume_at - monotonic()
            self._sleep(remaining)
            if remaining <= 0:
                return

    def wait_after_failure(self, tries: int) -> None:
        """Return when a file that failed this many times in a row may be requested again. Raises Stopped."""
        # Jitter, so that threads that failed at the same time do not all retry at the same time.
        self._sleep(min(MAX_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * random.uniform(0.5, 1))

    def pause_all(self, seconds: float) -> None:
        """Delay the requests for all files by this time."""
        with self._lock:
            self._resume_at = max(self._resume_at, monotonic() + seconds)

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(max(0.0, seconds)):
            raise Stopped


def retry_after_seconds(header: str | None) -> float:
    """Return the seconds in a Retry-After header, which contains a number or a date; 0 if it contains neither."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
