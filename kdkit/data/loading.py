"""Load a split in batches, in this process, ahead of time in threads, or in worker processes."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from kdkit.data.batch import Batch
from kdkit.data.dataset import LoaderSplit, Split, WorkerInit
from kdkit.data.order import rows_of_batches
from kdkit.utils.processes import usable_cores
from kdkit.utils.randomness import seed_everything, seeded_on_cpu
from kdkit.utils.seeds import derive_seed

_MAX_WORKERS = 4  # if chosen automatically: four processes load batches faster than most networks consume them


class BatchSeed(NamedTuple):
    """The seed for loading batches: each batch is loaded with random numbers from `seed` and the number of the batch.

    first: the number of the first batch, so that a resumed epoch draws the same numbers. in_process: whether this
    process uses the seed too; worker processes always do. It takes time, so it is only for data that may draw random
    numbers.
    """

    seed: int
    first: int = 0
    in_process: bool = False


_NO_SEED = BatchSeed(derive_seed(0, 0))  # for batches that are not trained on


class RowBatches(Dataset[Batch]):
    """A split in batches, as a dataset whose items are whole batches.

    rows: the rows of each batch, (samples,) int64. draw: the draw of the samples. seed: the seed of the batches, which
    threads of this process do not use.
    Iterating loads one batch after another in this process. `load_ahead` uses workers or threads.
    """

    def __init__(self, split: Split, rows: tuple[Tensor, ...], *, draw: int = 0, seed: BatchSeed = _NO_SEED) -> None:
        self.split = split
        self.rows = rows
        self.draw = draw
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        seed = self.seed
        if get_worker_info() is not None:
            # torch seeds a worker only once, so its random numbers would depend on the batches that it loaded before.
            seed_everything(derive_seed(seed.seed, seed.first + index))
        elif seed.in_process:
            # The same numbers, without consuming those that the networks draw, such as for dropout masks.
            with seeded_on_cpu(derive_seed(seed.seed, seed.first + index)):
                return self.load(index)
        return self.load(index)

    def __iter__(self) -> Iterator[Batch]:
        if self.seed.in_process:
            return (self[index] for index in range(len(self)))
        return (self.split.batch(rows, self.draw) for rows in self.rows)  # a fast path: a step may take microseconds

    def load(self, index: int) -> Batch:
        """Return a batch, without seeding random numbers."""
        return self.split.batch(self.rows[index], self.draw)


def batches(
    split: Split | LoaderSplit, size: int, *, order: Tensor | None = None, pin: bool = False
) -> RowBatches | LoaderSplit:
    """Return the batches of a split with `size` samples each, in row order or in `order`, (rows,) int64.

    pin: whether the loader of a stream puts batches in pinned memory; for other splits, `load_ahead` does this.
    """
    if isinstance(split, LoaderSplit):
        return split.batched(size, pin=pin)
    return RowBatches(split, rows_of_batches(split, size, order))


def load_ahead(batches: RowBatches, *, workers: int | None, pin: bool) -> Iterable[Batch]:
    """Return batches that are loaded ahead of time, if this is faster.

    workers: the number of processes that load batches; 0 loads them in this process; None chooses, see
    `Split.parallel`. pin: whether to put batches in pinned memory, so that copies to a GPU are asynchronous.
    """
    # On a CPU, workers would take time from the network. If a GPU trains, one core is left for this process.
    parallel = batches.split.parallel if pin and workers is None else False
    several = min(_MAX_WORKERS, usable_cores() - 1) if parallel else 0
    if parallel == "threads" and several > 0:
        return ThreadedBatches(batches, several)
    if workers is None:
        workers = several
    if workers == 0 and not pin:
        return batches  # a DataLoader would add its overhead to every step
    # A DataLoader draws a base seed when it is iterated, which would change dropout masks if the generator was global.
    generator = torch.Generator().manual_seed(torch.initial_seed())
    init = WorkerInit() if workers else None
    return DataLoader(
        batches, batch_size=None, num_workers=workers, pin_memory=pin, generator=generator, worker_init_fn=init
    )


class ThreadedBatches:
    """Batches that several threads load ahead of time, in order, and put in pinned memory.

    pin: False leaves batches in pageable memory.
    """

    def __init__(self, batches: RowBatches, threads: int, *, pin: bool = True) -> None:
        self.batches, self.threads, self.pin = batches, threads, pin

    def __iter__(self) -> Iterator[Batch]:
        def load(index: int) -> Batch:
            batch = self.batches.load(index)
            return batch.pin_memory() if self.pin else batch

        count, loading = len(self.batches), deque[Future[Batch]]()
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                for index in range(count + self.threads):
                    if index < count:
                        loading.append(pool.submit(load, index))
                    if index >= self.threads:
                        yield loading.popleft().result()
            finally:
                for future in loading:  # only after an error, or if the consumer stops early
                    future.cancel()
