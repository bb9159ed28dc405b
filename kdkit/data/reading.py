"""Read batches with checked labels, explained errors, and warnings about slow or hanging workers."""

import multiprocessing
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from threading import Event, Thread
from time import monotonic
from traceback import walk_tb
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from kdkit.data.batch import Batch, content_of
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.data.label_check import DeferredLabelCheck, LabelCheck
from kdkit.data.loading import RowBatches, load_ahead
from kdkit.data.read_errors import explain_unreadable, raise_explained
from kdkit.errors import DataError
from kdkit.utils.processes import usable_cores
from kdkit.utils.randomness import preserve_rng_state
from kdkit.utils.reprs import describe_numbers

NOTICE_AFTER = 120.0  # seconds of waiting for a batch before a warning, which is repeated whenever the time has doubled
SLOW_AFTER = 60.0  # seconds of reading without workers, if this is most of the time, before a warning
_REPEATED = 4  # samples that are read twice
LIMIT = 1800.0  # seconds of waiting before worker processes are ended; other ranks wait equally long for this one


def samples_change(read: Callable[[Tensor], Any], rows: int) -> bool:
    """Whether one of a few samples changes when it is read again. read: returns the samples in some of the rows."""
    few = torch.linspace(0, rows - 1, min(_REPEATED, rows)).long()
    with preserve_rng_state(cuda=False):  # one row at a time, because their sizes may differ
        first, second = ([[*content_of(read(row[None]))] for row in few] for _ in range(2))
    return first != second


class ReadBatches:
    """Reads batches and checks their labels.

    check: None if the split checks its own labels. workers, pin: see `load_ahead`; the loader of a LoaderSplit has its
    own.
    Iterating raises DataError if a batch cannot be read or has invalid labels. It warns after NOTICE_AFTER seconds of
    waiting for a batch. After LIMIT seconds it ends the worker processes, so that the wait ends with an error. It also
    warns, once per split, if reading without workers takes most of the time.
    """

    def __init__(
        self,
        batches: RowBatches | LoaderSplit,
        check: LabelCheck | None = None,
        *,
        workers: int | None = 0,
        pin: bool = False,
    ) -> None:
        self.check = check
        self.rows: Sequence[Tensor] | None = None  # the rows of each batch, for messages
        self.loaded: Iterable[Batch]
        self._loader: object  # its worker processes may hang or end
        if isinstance(batches, RowBatches):
            self.rows = batches.rows
            self.loaded = self._loader = load_ahead(batches, workers=workers, pin=pin)
            split: Split | LoaderSplit = batches.split
        else:
            self.loaded, self._loader, split = batches, batches.loader, batches
        self._split = split
        name = getattr(split, "name", "") if check is None else check.split
        self._subject = f"the {name} data" if name else "the data"

    def take(self, count: int) -> list[Batch]:
        """Read at most `count` batches from the start."""
        # Closed here, because Python would print an interrupt that arrives while it closes an abandoned generator.
        with closing(iter(self)) as batches:
            return list(islice(batches, count))

    def __iter__(self) -> Generator[Batch]:
        check = None if self.check is None else DeferredLabelCheck(self.check)
        iterator: Iterator[Batch] | None = None
        index = 0
        began, read = monotonic(), 0.0
        with _Watch(lambda: self._position(index), self._loader) as watch:
            while True:
                # Around each batch, not around the loop: errors in code that uses the batch must pass unchanged.
                watch.since = since = monotonic()
                try:
                    if iterator is None:
                        iterator = iter(self.loaded)
                    batch = next(iterator, None)
                except Exception as error:
                    raise_explained(error, watch.explained(error))
                finally:
                    watch.since = None
                if batch is None:
                    break
                read += monotonic() - since
                total = monotonic() - began
                if read > SLOW_AFTER and read > 0.5 * total:
                    self._warn_slow(read, total)
                if check is not None:
                    check.add(batch.labels, None if self.rows is None else self.rows[index])
                yield batch
                index += 1
        if check is not None:
            check.finish()

    def _warn_slow(self, read: float, total: float) -> None:
        """Warn, once per split, that worker processes would help. read: seconds spent reading, out of `total`."""
        loader, is_rows = self._loader, self.rows is not None
        if isinstance(loader, DataLoader):
            # Without rows and a batch size, it may wrap another loader, which has its own workers.
            helps = loader.num_workers == 0 and (is_rows or loader.batch_size is not None)
        else:
            helps = isinstance(loader, RowBatches)
        if id(self._split) in _slow_splits or not helps or usable_cores() < 2:
            return
        _slow_splits.add(id(self._split))
        option = "Training(workers=4)" if is_rows else "DataLoader(..., num_workers=4)"
        warnings.warn(
            f"reading {self._subject} takes most of the time, {read:.0f} of {total:.0f} s; {option} reads ahead in "
            "four processes",
            RuntimeWarning,
            stacklevel=3,
        )

    def _position(self, index: int) -> str:
        rows = [] if self.rows is None or index >= len(self.rows) else self.rows[index].tolist()
        return f"batch {index + 1} of {self._subject}" + (f" (rows {describe_numbers(rows)})" if rows else "")


def no_batch(name: str) -> DataError:
    """Return the error for a stream or DataLoader that yields no batch, although it did before. name: of its split."""
    return DataError(
        f"the {name} data yields no batch when it is read again from its start; its __iter__ must start again, as that "
        f"of an IterableDataset does{', or never end' if name == 'training' else ''}"
    )


@contextmanager
def reading(position: str, loader: object = None) -> Iterator[None]:
    """Read one batch inside the context, with the warnings and errors of `ReadBatches`.

    position: the name of the batch, such as "the first batch of the train data". loader: its DataLoader, if it has one.
    """
    with _Watch(lambda: position, loader) as watch:
        watch.since = monotonic()
        try:
            yield
        except Exception as error:
            raise_explained(error, watch.explained(error))


_slow_splits: set[int] = set()  # ids of splits that a warning was given for; some splits are not hashable
_workers: WeakKeyDictionary[Any, frozenset[Any]] = WeakKeyDictionary()  # persistent worker processes by DataLoader
_watches: "set[_Watch]" = set()
_thread: Thread | None = None  # looks at all watches, so that a batch only costs setting two attributes


class _Watch:
    """Measures how long the wait for a batch takes. since: the start of the wait, by the monotonic clock, or None.

    position: returns the name of the batch. loader: its DataLoader, if it has one.
    """

    def __init__(self, position: Callable[[], str], loader: object) -> None:
        self.position = position
        self.since: float | None = None
        self._loader = loader if isinstance(loader, DataLoader) and loader.num_workers > 0 else None
        self._before: frozenset[Any] = frozenset()
        self._notified = 0.0  # the seconds of waiting at the last warning
        self._expired = False

    def __enter__(self) -> Self:
        global _thread
        if self._loader is not None:
            self._before = frozenset(multiprocessing.active_children())
        _watches.add(self)
        if _thread is None or not _thread.is_alive():  # threads do not survive a fork
            _thread = Thread(target=_look_at_watches, name="kdkit-data-watch", daemon=True)
            _thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        _watches.discard(self)
        if self._loader is not None and self._loader.persistent_workers:
            _workers[self._loader] = self._processes()

    def explained(self, error: Exception) -> Exception:
        """Return the error to raise instead of this one, which may be the same one, and end the workers."""
        if self._loader is not None:
            with suppress(RuntimeError):  # torch may report the end of another worker at any line, once
                _end_workers(error, self._loader)
            _end_workers(error, self._loader)
        if self._expired:
            return DataError(
                f"{self.position()} was not read within {LIMIT / 60:g} minutes, so its worker processes were ended; "
                "find out what the dataset waits for, such as storage or a lock, or read the data without workers"
            )
        return explain_unreadable(error, self.position(), has_workers=self._loader is not None)

    def look(self) -> None:
        """Warn if the batch takes long, and end its workers if it takes too long."""
        since = self.since
        if since is None:
            self._notified = 0.0
            return
        waited = monotonic() - since
        if self._loader is not None and waited >= LIMIT and not self._expired:
            self._expired = True
            for process in self._processes():
                process.kill()  # torch then raises an error in the thread that waits for the batch
        elif waited >= max(NOTICE_AFTER, 2 * self._notified):
            self._notified = waited
            workers = "" if self._loader is None else f" from {self._loader.num_workers} worker processes"
            with suppress(Warning):  # if warnings are errors, nothing in this thread would catch them
                warnings.warn(
                    f"waiting for {waited:.0f} s for {self.position()}{workers}", RuntimeWarning, stacklevel=2
                )

    def _processes(self) -> frozenset[Any]:
        """Return the processes that started during the wait, and the persistent workers of the loader."""
        started = frozenset(process for process in multiprocessing.active_children() if process.daemon)
        return (started - self._before) | _workers.get(self._loader, frozenset())


def _end_workers(error: Exception, loader: DataLoader[Any]) -> None:
    """End the workers of the DataLoader that an error came from.

    Otherwise they would live as long as the error's traceback, which refers to them, and torch could report their end
    at any later line.
    """
    for frame, _ in walk_tb(error.__traceback__):
        iterator = frame.f_locals.get("self")
        if isinstance(iterator, _BaseDataLoaderIter) and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
    if loader.persistent_workers:
        loader._iterator = None  # otherwise the loader would wait for these workers in its next epoch


def _look_at_watches() -> None:
    pause = Event()
    while True:
        pause.wait(min(1.0, NOTICE_AFTER / 4))
        for watch in tuple(_watches):  # a copy, which is atomic
            watch.look()
