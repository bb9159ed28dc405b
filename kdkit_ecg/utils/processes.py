"""Do one thing to many items in processes of their own, which never run the caller's main file.

multiprocessing imports the main file anew in each process, so that a script without `if __name__ == "__main__"`, or
one that came through stdin, cannot ask for data. These processes are started with what they need and nothing else.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any, Generic, TypeVar, cast

from kdkit import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 3  # items for each process that may wait or be done: results must not pile up where they are taken slowly

# One thread each: as many processes as cores, each with as many threads, would get in each other's way.
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}

_BEGIN = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from kdkit_ecg.utils.processes import serve
serve()
"""


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what `work` returns of it, as they are done; `work` and the items are pickled.

    processes: how many at most; no more are started than there are items.
    The processes end when the caller leaves, however it leaves, and do not hear Ctrl-C themselves.
    Raises what `work` raises, and DataError where a process is ended from outside.
    """
    workers = [_Worker(work) for _ in range(min(processes, len(items)))]
    idle: SimpleQueue[_Worker[Item, Result]] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def ask(item: Item) -> tuple[Item, Result]:
        worker = idle.get()
        try:
            return item, worker.ask(item)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(processes)
    try:
        asked: set[Future[tuple[Item, Result]]] = set()
        for item in items:
            asked.add(threads.submit(ask, item))
            if len(asked) >= processes * AHEAD:
                done, asked = wait(asked, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
        while asked:
            done, asked = wait(asked, return_when=FIRST_COMPLETED)
            yield from (each.result() for each in done)
    finally:
        for worker in workers:
            worker.kill()  # so that no thread waits for an answer any more
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


class _Worker(Generic[Item, Result]):
    """A process that answers each item with what `work` returns of it."""

    def __init__(self, work: Callable[[Item], Result]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BEGIN],  # a struct.py where one stands is not Python's
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
            process_group=None if sys.platform == "win32" else 0,  # Ctrl-C reaches the group in front
        )
        self._asked, self._answers = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        self._first = pickle.dumps(sys.path) + pickle.dumps(work)

    def ask(self, item: Item) -> Result:
        try:
            self._asked.write(self._first + pickle.dumps(item))
            self._asked.flush()
            self._first = b""
            went_well, answer = pickle.load(self._answers)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise DataError(
                "a process that read records was ended from outside, perhaps since memory is short; run the same "
                "again, with fewer --jobs where it comes again"
            ) from error
        if not went_well:
            raise answer
        result: Result = answer
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        for pipe in (self._asked, self._answers):
            with suppress(OSError):  # what was not sent before the end cannot be
                pipe.close()


def serve() -> None:
    """Answer until there is nothing more to read, which is also when the caller was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints, prints elsewhere
    try:
        work: Callable[[Any], Any] = pickle.load(sys.stdin.buffer)
        while True:
            item = pickle.load(sys.stdin.buffer)
            try:
                answer = (True, work(item))
            except Exception as error:
                answer = (False, error)
            answers.write(pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))
            answers.flush()
    except (EOFError, BrokenPipeError):
        return
