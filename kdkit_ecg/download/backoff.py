"""Decide how long to wait before a server is asked again."""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from time import monotonic

TRIES = 6  # in a row without a new byte
FIRST = 1.0  # s before the second try, doubled for each one after
LONGEST = 60.0  # s of back-off
ASKED = 600.0  # s that a server may ask for with Retry-After; a longer wait is the person's to decide


class Stopped(Exception):  # noqa: N818 -- nothing is wrong: the run ends, and the threads with it
    """The run was stopped while this thread was at work."""


@dataclass(slots=True)
class Backoff:
    """Back-off with jitter for one file, and a pause for all files where a server asks for one."""

    stop: Event
    _not_before: float = 0.0
    _lock: Lock = field(default_factory=Lock)

    def wait_turn(self) -> None:
        """Return when the server may be asked. Raises Stopped."""
        self._sleep(self._not_before - monotonic())

    def wait_after(self, tries: int) -> None:
        """Return when a file that failed this many times in a row may be tried again. Raises Stopped."""
        # Jitter, so that threads that failed together do not come back together.
        self._sleep(min(LONGEST, FIRST * 2 ** (tries - 1)) * random.uniform(0.5, 1))

    def pause(self, seconds: float) -> None:
        """Keep all files waiting for this long."""
        with self._lock:
            self._not_before = max(self._not_before, monotonic() + seconds)

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(max(0.0, seconds)):
            raise Stopped


def asked_wait(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks for, in its form as a number or as a date; 0 for neither."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
