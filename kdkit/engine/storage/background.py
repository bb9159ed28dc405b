"""Write files in a thread, while training continues."""

from collections.abc import Callable
from concurrent import futures
from threading import Thread

_unfinished: set[futures.Future[None]] = set()  # what this process is writing


class BackgroundWriter:
    """Calls functions in a thread, one after another."""

    def __init__(self) -> None:
        self._writing: futures.Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Call a function in a thread after the previous one has ended. Raises the error of the previous one."""
        self.wait()
        self._writing = futures.Future()
        _unfinished.add(self._writing)
        self._writing.add_done_callback(_unfinished.discard)
        # Not an executor, because Python waits for the threads of executors at exit; a daemon thread does not keep the
        # process alive.
        Thread(target=_call, args=(write, self._writing), name="kdkit-checkpoint", daemon=True).start()

    def wait(self) -> None:
        """Wait until the last function has ended, and raise its error."""
        if self._writing is not None:
            futures.wait([self._writing])  # an interrupt of this wait must not lose it
            writing, self._writing = self._writing, None
            writing.result()


def wait_for_all() -> None:
    """Wait for everything that this process is writing, such as for a run that two signals ended."""
    futures.wait(_unfinished)


def _call(write: Callable[[], None], result: futures.Future[None]) -> None:
    try:
        write()
    except BaseException as error:  # raised again by the caller that waits for the future
        result.set_exception(error)
    else:
        result.set_result(None)
