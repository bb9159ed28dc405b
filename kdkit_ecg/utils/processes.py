"""Apply one function to many items in worker processes that never import the caller's main script.

multiprocessing imports the main script in every process it starts. A script without `if __name__ == "__main__"`, or one
read from stdin, could not prepare data then. The processes here receive only the search path, the function and items.
"""

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any, Generic, TypeVar, cast

from kdkit import DataError
from kdkit.utils.processes import start_python

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items per process that may be queued or finished. Without a limit, results pile up if the caller reads them slowly.
QUEUED_PER_PROCESS = 3

# There are as many processes as cores, so more than one thread in each would oversubscribe the cores.
_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}

# The program of a worker: the search path must be set before kdkit_ecg can be imported.
_WORKER_PROGRAM = """
import pickle, sys
try:
    sys.path[:] = pickle.load(sys.stdin.buffer)
except EOFError:  # the caller has ended before it sent an item
    sys.exit()
from kdkit_ecg.utils.processes import serve
serve()
"""


def run_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with the result of `function`, in the order in which they finish.

    `function`, items and results are pickled. At most `processes` are started, and no more than there are items. They
    end when the generator is closed for any reason, and they ignore Ctrl-C.
    Raises the exceptions of `function`, and DataError if a process is killed from outside.
    """
    workers = [_Worker(function) for _ in range(min(processes, len(items)))]
    idle: SimpleQueue[_Worker[Item, Result]] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run_on_idle_worker(item: Item) -> tuple[Item, Result]:
        worker = idle.get()
        try:
            return item, worker.run(item)
        finally:
            idle.put(worker)

    # A thread per process only waits for its pipe, so the GIL does not matter here.
    threads = ThreadPoolExecutor(processes)
    try:
        pending: set[Future[tuple[Item, Result]]] = set()
        for item in items:
            pending.add(threads.submit(run_on_idle_worker, item))
            if len(pending) >= processes * QUEUED_PER_PROCESS:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        for worker in workers:
            worker.kill()  # closes the pipe, which ends any thread that waits for a result
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


class _Worker(Generic[Item, Result]):
    """A process that applies `function` to one item at a time."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        # -P: a struct.py in the current folder must not shadow Python's.
        self._process = start_python("-P", "-c", _WORKER_PROGRAM, variables=_ONE_THREAD)
        self._requests, self._results = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        self._setup = pickle.dumps(sys.path) + pickle.dumps(function)

    def run(self, item: Item) -> Result:
        try:
            # The setup is sent with the first item, so that all processes start at the same time.
            self._requests.write(self._setup + pickle.dumps(item))
            self._requests.flush()
            self._setup = b""
            succeeded, outcome = pickle.load(self._results)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise DataError(
                "a process that read records was killed from outside, perhaps because memory is short; run the same "
                "command again, with fewer --jobs if it is killed again"
            ) from error
        if not succeeded:
            raise outcome
        result: Result = outcome
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        for pipe in (self._requests, self._results):
            with suppress(OSError):  # closing flushes, which fails if an item was written but not sent
                pipe.close()


def serve() -> None:
    """Run the loop of a worker process: read items from stdin until it is closed, and write results to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # anything that the function prints goes to stderr and does not mix with the results
    try:
        function: Callable[[Any], Any] = pickle.load(sys.stdin.buffer)
        while True:
            item = pickle.load(sys.stdin.buffer)
            try:
                outcome = (True, function(item))
            except Exception as error:
                outcome = (False, error)
            results.write(pickle.dumps(outcome, protocol=pickle.HIGHEST_PROTOCOL))
            results.flush()
    except (EOFError, BrokenPipeError):  # the caller finished, or was killed
        return
