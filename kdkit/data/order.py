"""The order of the rows of a split, and the rows and sizes of its batches."""

import hashlib
from collections.abc import Iterable, Sized
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from kdkit.data.dataset import LoaderSplit, Split
from kdkit.errors import DataError, describe, shortened
from kdkit.utils.randomness import seeded_on_cpu
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
    """Return the order of a training epoch, (rows,) int64: a permutation, or the rows that the split's sampler draws.

    A last batch with a single sample is dropped, because batch norm cannot train on it. If the split has `lengths`, the
    rows of a batch have about the same one.
    """
    if split.sampler is None:
        order = shuffled(len(split), seed, epoch)
    else:
        order = sampled(split.sampler, len(split), derive_seed(seed, epoch, SeedPurpose.ORDER))
    order = order[: training_rows(len(order), batch_size)]
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
    return _sizes(training_rows(rows_per_pass(split), batch_size), batch_size)


def rows_per_pass(split: Split) -> int:
    """Return the number of samples in a pass over a training split: all rows, or as many as its sampler draws."""
    return len(split) if split.sampler is None else _length_of_sampler(split.sampler, len(split))


def training_rows(rows: int, batch_size: int) -> int:
    """Return the number of samples of a pass in batches: all, except a last one that would be a batch of its own."""
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


def require_sampler(sampler: Any, split: Split | LoaderSplit) -> None:
    """Raise DataError unless a sampler draws as many rows of a split as its length, and the same with the same seed."""
    if isinstance(split, LoaderSplit):
        raise DataError(
            "sampler is for a training Dataset, but this is a DataLoader or a stream, which has its own order; pass it "
            "to the DataLoader, or the Dataset to TorchData"
        )
    if isinstance(sampler, DistributedSampler):
        raise DataError("sampler must draw the samples of all processes, which kdkit divides; got a DistributedSampler")
    first, second = (sampled(sampler, len(split), seed=0) for _ in range(2))
    if not first.equal(second):
        raise DataError(
            f"{type(sampler).__name__} draws other rows with the same seed, so a run could not be repeated or resumed; "
            "let it draw from the global random state of torch, NumPy or Python, or from its attribute `generator`, "
            "which are seeded for each epoch, or from the number that its method `set_epoch` gets"
        )


def sampled(sampler: Any, rows: int, seed: int) -> Tensor:
    """Return the rows that a sampler draws with this seed, (draws,) int64. Raises DataError for other values."""
    length = _length_of_sampler(sampler, rows)
    generator = getattr(sampler, "generator", None)
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    with seeded_on_cpu(seed):
        drawn = list(sampler)
    try:
        order = torch.tensor(drawn)
    except (TypeError, ValueError, RuntimeError):
        order = torch.empty(0)
    are_numbers = order.ndim == 1 and order.dtype in (torch.int64, torch.int32)
    others = order[(order < 0) | (order >= rows)].tolist() if are_numbers else drawn
    if others or len(drawn) != length or not length:
        batches = "; pass a sampler of rows, not of batches" if order.ndim == 2 else ""
        raise DataError(
            f"sampler must draw {length:,} rows, its length, from 0 to {rows - 1:,}, such as "
            f"WeightedRandomSampler(weights, {rows}); got {len(drawn):,} values, such as "
            f"{shortened((others or drawn)[:8], 60)}{batches}"
        )
    return order.long()


def describe_sampler(split: Split | LoaderSplit) -> str | None:
    """Return the class of a split's sampler, the number of rows it draws, and a digest of them; None without one."""
    if isinstance(split, LoaderSplit) or split.sampler is None:
        return None
    if callable(getattr(split.sampler, "set_epoch", None)):
        split.sampler.set_epoch(0)  # type: ignore[attr-defined]  # an earlier run may have left another number
    rows = sampled(split.sampler, len(split), seed=0)
    digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
    return f"{type(split.sampler).__name__} of {len(rows):,} rows ({digest})"


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


def _length_of_sampler(sampler: Any, rows: int) -> int:
    with suppress(TypeError, NotImplementedError):
        if isinstance(sampler, Iterable) and isinstance(sampler, Sized):
            return len(sampler)
    raise DataError(
        f"sampler must be a sampler with a length, such as WeightedRandomSampler(weights, {rows}); got "
        f"{describe(sampler)}"
    )


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
