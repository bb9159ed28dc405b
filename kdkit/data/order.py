"""The order of the rows of a split, and the rows and sizes of its batches."""

from collections.abc import Sized

import torch
from torch import Tensor

from kdkit.data.dataset import LoaderSplit, Split
from kdkit.utils.seeds import SeedPurpose, derive_seed


def rows_of_batches(split: Split, size: int, order: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return the rows of each batch, (samples,) int64, in row order or in `order`. The last batch may be smaller."""
    return torch.split(order if order is not None else torch.arange(len(split)), size)


def shard_rows(rows: Tensor, rank: int, world_size: int) -> Tensor:
    """Return the rows of a batch that one rank loads. The numbers of rows of two ranks differ by at most one.

    If a rank would get fewer than two rows, on which batch norm cannot train, every rank loads the whole batch.
    """
    return rows if len(rows) < 2 * world_size else torch.tensor_split(rows, world_size)[rank]


def training_order(split: Split, batch_size: int, seed: int, epoch: int) -> Tensor:
    """Return the order of a training epoch, (rows,) int64.

    A last batch with a single sample is dropped, because batch norm cannot train on it.
    """
    return shuffled(len(split), seed, epoch)[: training_rows(len(split), batch_size)]


def training_batch_sizes(split: Split | LoaderSplit, batch_size: int) -> list[int] | None:
    """Return the number of samples in each batch of an epoch; None if a LoaderSplit does not know it in advance."""
    if isinstance(split, LoaderSplit):
        loader = split.loader
        if loader.batch_size is None or not isinstance(loader.sampler, Sized):
            return None  # a batch sampler, or a stream
        sizes = _sizes(len(loader.sampler), loader.batch_size, drop_last=loader.drop_last)
        return sizes if len(sizes) == len(split) else None
    return _sizes(training_rows(len(split), batch_size), batch_size)


def training_rows(rows: int, batch_size: int) -> int:
    """Return the number of samples in an epoch: all, except a last one that would be a batch of its own."""
    return rows - 1 if rows % batch_size == 1 and rows > batch_size > 1 else rows


def length_of(split: Split | LoaderSplit) -> int | None:
    """Return the length of a split, in rows or batches; None if it is a stream without a length."""
    try:
        return len(split)
    except (TypeError, NotImplementedError):  # raised by a DataLoader whose dataset or sampler has no length
        return None


def shuffled(rows: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of the rows, (rows,) int64, that depends only on seed and epoch."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch, SeedPurpose.ORDER))
    return torch.randperm(rows, generator=generator)


def _sizes(rows: int, size: int, *, drop_last: bool = False) -> list[int]:
    sizes = [size] * (rows // size)
    return sizes if drop_last or rows % size == 0 else [*sizes, rows % size]
