"""Load a split in batches, in a deterministic order."""

import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdkit.data.batch import Batch
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.utils.randomness import derive_seed

Part = tuple[int, int]  # which of so many processes
_ORDER, _LOADER = 1, 2  # what a seed is for: no two of them draw the same numbers

WORKERS = 4  # at most, where their number is chosen: so many copy batches faster than any net takes them


class Batches(Protocol):
    """Batches one after the other, as many as its length says."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


def batches(
    split: Split | LoaderSplit,
    size: int,
    *,
    order: Tensor | None = None,
    draw: int | None = 0,
    workers: int | None = 0,
    pin: bool = False,
    part: Part = (0, 1),
) -> "Batches":
    """Return the split's batches, `size` samples each, in row order or in `order` ((rows,) int64).

    part: of each batch, what falls to one process (see `own_part`).
    workers: processes that fetch them; 0 fetches them in this one; None chooses. pin: put them in page-locked memory,
    from which they are copied to a GPU without waiting.
    """
    if isinstance(split, LoaderSplit):
        return split
    workers = _helpful(split, pin) if workers is None else workers
    rows = order if order is not None else torch.arange(len(split))
    wholes = torch.split(rows, size)
    fetched = _Fetched(split, wholes if part == (0, 1) else [own_part(each, part) for each in wholes], draw or 0)
    if workers == 0 and not pin:
        return fetched  # a DataLoader would add its own cost to every step
    own = torch.Generator().manual_seed(torch.initial_seed())  # a loader draws a number, which dropout must not miss
    return DataLoader(fetched, batch_size=None, num_workers=workers, pin_memory=pin, generator=own)


def own_part(rows: Tensor, part: Part) -> Tensor:
    """Return the rows of a batch that fall to one process, as many for each but for one more of the first.

    Where a process would have fewer than two, which batch norm cannot take, each has all of them.
    """
    number, count = part
    return rows if len(rows) < 2 * count else torch.tensor_split(rows, count)[number]


def training_order(split: Split | LoaderSplit, batch_size: int, seed: int, epoch: int) -> Tensor | None:
    """Return the order of a training epoch; None where a user's own loader has its own.

    A last batch of a single sample is left out, since batch norm cannot take it.
    """
    if isinstance(split, LoaderSplit):
        return None
    order = shuffled(len(split), seed, epoch)
    return order[:-1] if len(order) % batch_size == 1 and len(order) > batch_size > 1 else order


def shuffled(rows: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch, (rows,) int64: a function of (seed, epoch) and of nothing else."""
    own = derive_seed(seed, epoch, _ORDER)  # not the seed of the epoch's dropout, or both would draw the same numbers
    return torch.randperm(rows, generator=torch.Generator().manual_seed(own))


def _helpful(split: Split, pin: bool) -> int:
    """Return how many processes to fetch batches with: those that would not take the CPU from the net."""
    if not (pin and getattr(split, "parallel", False)):
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(WORKERS, processors - 1)


class _Fetched(Dataset[Batch]):
    """A split seen as a list of whole batches, so that a DataLoader's workers fetch a batch at a time."""

    def __init__(self, split: Split, rows: Sequence[Tensor], draw: int) -> None:
        self.split = split
        self.rows = rows
        self.draw = draw

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.split.batch(self.rows[index], self.draw)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.rows:
            yield self.split.batch(rows, self.draw)
