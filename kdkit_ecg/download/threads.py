"""Do one thing to many items in threads, and stop at once when told to."""

from collections.abc import Callable, Iterator, Sequence
from queue import Empty, Queue, SimpleQueue
from threading import Event, Thread
from time import monotonic
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

GRACE = 2.0  # s that threads get to come to an end; one that waits for a server is then left behind


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], jobs: int, stop: Event
) -> Iterator[tuple[Item, Result | Exception]]:
    """Yield each item with what `work` returns or raises, as they are done, with `jobs` at work at once.

    `stop` is set when the caller leaves early, so that `work` may look at it. The threads are daemons: an interrupt
    ends the program also while a server keeps one waiting.
    """
    waiting: SimpleQueue[Item] = SimpleQueue()
    done: Queue[tuple[Item, Result | Exception]] = Queue()
    for item in items:
        waiting.put(item)
    threads = [Thread(target=_keep_at, args=(work, waiting, done, stop), daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    finished = False
    try:
        for _ in items:
            yield done.get()
        finished = True
    finally:
        if not finished:
            stop.set()
        until = monotonic() + GRACE
        for thread in threads:
            thread.join(max(0.0, until - monotonic()))


def _keep_at(
    work: Callable[[Item], Result],
    waiting: SimpleQueue[Item],
    done: Queue[tuple[Item, Result | Exception]],
    stop: Event,
) -> None:
    while not stop.is_set():
        try:
            item = waiting.get_nowait()
        except Empty:
            return
        try:
            done.put((item, work(item)))
        except Exception as error:  # handed to whoever asked, who knows what to do with it
            done.put((item, error))
