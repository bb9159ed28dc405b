"""Apply one function to many items in threads that can be stopped at once."""

from collections.abc import Callable, Iterator, Sequence
from queue import Empty, Queue, SimpleQueue
from threading import Event, Thread
from time import monotonic
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

GRACE = 2.0  # s for the threads to finish; a thread that still waits for a server is then abandoned


def run_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int, stop: Event
) -> Iterator[tuple[Item, Result | Exception]]:
    """Yield each item with the result or the exception of `function`, in the order in which they finish.

    `stop` is set if the generator is closed early, so that `function` can check it. The threads are daemons: Ctrl-C
    ends the program even if a server keeps a thread waiting, which a ThreadPoolExecutor would not allow.
    """
    waiting: SimpleQueue[Item] = SimpleQueue()
    finished: Queue[tuple[Item, Result | Exception]] = Queue()
    for item in items:
        waiting.put(item)

    def work() -> None:
        while not stop.is_set():
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                finished.put((item, function(item)))
            except Exception as error:  # returned to the caller, which decides what to do with it
                finished.put((item, error))

    threads = [Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    complete = False
    try:
        for _ in items:
            yield finished.get()
        complete = True
    finally:
        if not complete:
            stop.set()
        deadline = monotonic() + GRACE
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
