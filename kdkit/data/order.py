"""The order of the rows of a split, and the rows and sizes of its batches."""

from collections.abc import Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.data.dataset import LoaderSplit, Split
from kdkit.errors import DataError, describe
from kdkit.utils.seeds import SeedPurpose, derive_seed

# As in the Trainer of Hugging Face: rows are sorted by length among 50 batches, but at least among a quarter of an
# epoch, because a small data set that is sorted as a whole would have the same batches in each epoch.
_SORTED_BATCHES, _LEAST_PARTS = 50, 4


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

    A last batch with a single sample is dropped, because batch norm cannot train on it. If the split has `lengths`, the
    rows of a batch have about the same one.
    """
    order = shuffled(len(split), seed, epoch)[: training_rows(len(split), batch_size)]
    count = len(order) // batch_size
    if split.lengths is None or not count:
        return order
    lengths = require_lengths(split.lengths, len(split))
    return _by_length(order, lengths, batch_size, shuffled(count, seed, epoch, SeedPurpose.BATCHES))


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


def require_lengths(lengths: Any, rows: int) -> Tensor:
    """Return the lengths of samples as a tensor, (rows,). Raises DataError unless they are a finite number per row."""
    try:
        # torch would read the rows of a pandas Series by their labels.
        tensor = torch.as_tensor(lengths if isinstance(lengths, Tensor) else np.array(lengths))
    except (TypeError, ValueError, RuntimeError):
        tensor = torch.empty(0)
    if tensor.shape != (rows,) or tensor.is_complex() or not tensor.double().isfinite().all():
        try:
            count = len(lengths)
            got = f"{count:,} values" + (", not all of which are finite numbers" if count == rows else "")
        except TypeError:  # not a list, or an array or a tensor of one number
            got = describe(lengths)
        raise DataError(
            f"lengths must be a finite number for each of the {rows:,} training samples, such as "
            f"[len(text) for text in texts]; got {got}"
        )
    return tensor.double().cpu()


def length_of(split: Split | LoaderSplit) -> int | None:
    """Return the length of a split, in rows or batches; None if it is a stream without a length."""
    try:
        return len(split)
    except (TypeError, NotImplementedError):  # raised by a DataLoader whose dataset or sampler has no length
        return None


def shuffled(rows: int, seed: int, epoch: int, purpose: SeedPurpose = SeedPurpose.ORDER) -> Tensor:
    """Return a permutation of the rows, (rows,) int64, that depends only on seed, epoch and purpose."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch, purpose))
    return torch.randperm(rows, generator=generator)


def _by_length(order: Tensor, lengths: Tensor, batch_size: int, order_of_batches: Tensor) -> Tensor:
    """Return an order whose batches have rows of about the same length.

    order, order_of_batches: permutations of the rows, and of the batches, except for a last one that is smaller.
    """
    part = max(1, min(_SORTED_BATCHES, len(order) // (_LEAST_PARTS * batch_size))) * batch_size
    rows = torch.cat([rows[lengths[rows].argsort(stable=True, descending=True)] for rows in torch.split(order, part)])
    whole = len(order_of_batches) * batch_size
    batches = rows[:whole].view(-1, batch_size)[order_of_batches]
    # The longest rows come first, so that too little memory shows at once.
    longest = int(lengths[batches].amax(1).argmax())
    batches[[0, longest]] = batches[[longest, 0]]
    return torch.cat([batches.flatten(), rows[whole:]])


def _sizes(rows: int, size: int, *, drop_last: bool = False) -> list[int]:
    sizes = [size] * (rows // size)
    return sizes if drop_last or rows % size == 0 else [*sizes, rows % size]
