"""Count what readers do with inputs, and measure the time and the memory that they take."""

import os
import re
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from kdkit import KdkitError

SECONDS, MEMORY = 5, 512 << 20  # of CPU for each input, and bytes above those of the idle process
LONGEST_MESSAGE = 5000
PORTION = 1000  # inputs between which hypothesis forgets those that it made, which take memory


class TooSlow(BaseException):
    """Raised in a reader after SECONDS. Not an Exception, which readers turn into errors of kdkit."""


class Meter:
    """The outcomes of inputs by name, such as "read" and "refused", and the longest CPU time of one."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.seconds = 0.0
        self.idle = resident()
        signal.signal(signal.SIGVTALRM, _stop)

    @property
    def inputs(self) -> int:
        """The number of inputs so far."""
        return sum(self.outcomes.values())

    @property
    def memory(self) -> int:
        """The largest memory of the process since it was idle, in bytes, above that of the idle process."""
        return max(0, peak() - self.idle)

    def limit_memory(self) -> None:
        """Call the process idle, and from now on let it have as much memory as it has, and MEMORY."""
        # Virtual memory, of which a process of torch has much more than it uses, but which grows as it uses more.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self.idle = resident()

    def read(self, *readers: Callable[[], Any], more: Iterable[Callable[[], Any]] = ()) -> None:
        """Call all readers of one input, and count its outcome: that of the first one that refuses it, or "read".

        A reader that returns a text names its outcome. more: readers whose outcome does not count.
        Raises anything but a KdkitError with one short message, and if the input takes too much time or memory.
        """
        began, outcome = time.process_time(), "read"
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            for reader in (*readers, *more):
                try:
                    returned = reader()
                except KdkitError as error:
                    _require_short(error)
                    returned = "refused"
                if outcome == "read" and isinstance(returned, str) and reader in readers:
                    outcome = returned
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        seconds = time.process_time() - began
        if seconds > SECONDS:
            raise TooSlow(f"an input took {seconds:.1f} s of CPU")
        self.seconds = max(self.seconds, seconds)
        self.outcomes[outcome] += 1


def _require_short(error: KdkitError) -> None:
    """Raise an error that needed too much memory, or whose message is too long to be read."""
    require_enough_memory(error)
    assert len(str(error)) < LONGEST_MESSAGE, "the message is too long"


def require_enough_memory(error: BaseException | None) -> None:
    """Raise an error that was caused by a lack of memory: it hides that an input requested too much."""
    while error is not None:
        # Not the errors of torch: it does not fill the memory that it requests, so that the process does not get it.
        assert not isinstance(error, MemoryError), "the input requested more memory than allowed"
        error = error.__cause__ or error.__context__


def for_inputs(meter: Meter, inputs: int, first_seed: int, **strategies: SearchStrategy[Any]) -> Callable[..., None]:
    """Decorate a function of one input that calls `meter.read`: call it with this many inputs, always the same ones.

    first_seed: another number gives other inputs. Raises the exception of the smallest input that fails.
    """

    def call(check: Callable[..., None]) -> None:
        last, number = meter.inputs + inputs, first_seed * 1_000_000
        while meter.inputs < last:
            before = meter.inputs
            options = settings(
                max_examples=min(PORTION, last - before),
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )
            seed(number)(options(given(**strategies)(check)))()
            assert meter.inputs > before, "no input reached a reader"
            number += 1

    return call


def resident() -> int:
    """Return the bytes that this process has in memory."""
    return _status("VmRSS")


def peak() -> int:
    """Return the most bytes that this process had in memory."""
    return _status("VmHWM")


def _status(key: str) -> int:
    match = re.search(rf"{key}:\s*([0-9]+) kB", Path(f"/proc/{os.getpid()}/status").read_text())
    return int(match[1]) * 1024 if match else 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise TooSlow(f"an input took over {SECONDS} s of CPU")
