"""Collectives over the ranks of a run. In a run of one process they return their input."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parameter import is_lazy

if distributed.is_available():
    # DDP imports this module, whose default arguments capture the default process group if one exists. The threads of
    # that group would then outlive it and may abort the process at exit. So import it before a group is created.
    import torch.distributed.nn

T = TypeVar("T")

_alone: ContextVar[bool] = ContextVar("alone", default=False)  # whether collectives send no messages
_has_same_rows: ContextVar[bool] = ContextVar("has_same_rows", default=False)  # whether all ranks have the same rows


def is_distributed() -> bool:
    """Return whether this run has more than one rank."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def world_size() -> int:
    """Return the number of ranks."""
    return distributed.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return the rank of this process. Rank 0 writes the run folder and prints."""
    return distributed.get_rank() if is_distributed() else 0


def without_messages() -> AbstractContextManager[None]:
    """Return a context in which collectives return their inputs, so that other ranks need not call them."""
    return _enabled(_alone)


def same_rows() -> AbstractContextManager[None]:
    """Return a context in which only the rows of the first rank are gathered, because all ranks have the same rows."""
    return _enabled(_has_same_rows)


@contextmanager
def _enabled(flag: ContextVar[bool]) -> Iterator[None]:
    token = flag.set(True)
    try:
        yield
    finally:
        flag.reset(token)


def all_gather(rows: Tensor) -> Tensor:
    """Return the rows of all ranks in rank order, (rows, ...) -> (all rows, ...); ranks may have different counts."""
    if not _sends():
        return rows
    if _has_same_rows.get():
        first = rows.clone(memory_format=torch.contiguous_format)
        distributed.broadcast(first, src=0)
        return first
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # all_gather needs one shape on all ranks
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def all_gather_objects(values: Sequence[T]) -> list[T]:
    """Return the values of all ranks in rank order; they must be picklable, and ranks may have different counts."""
    if not _sends():
        return [*values]
    gathered: list[Sequence[T]] = [()] * world_size()
    distributed.all_gather_object(gathered, [*values])
    return [value for rank_values in gathered for value in rank_values]


def all_reduce_mean(values: Tensor) -> Tensor:
    """Return the mean over all ranks, of the same shape."""
    if not _sends():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def all_reduce_row_mean(values: Tensor) -> Tensor:
    """Return the mean of the values of all ranks, (rows,) -> (); counts may differ between ranks. NaN if all are 0."""
    if not _sends():
        return values.mean()
    reduced = all_reduce_mean(torch.stack([values.sum(), values.new_full((), len(values))]))
    return reduced[0] / reduced[1]


def all_reduce_sum(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the sums over all ranks, computed on `device`."""
    if not _sends():
        return [*values]
    total = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    sums: list[float] = total.tolist()
    return sums


def barrier() -> None:
    """Wait until every rank has called this."""
    if _sends():
        distributed.barrier()


def broadcast(value: T) -> T:
    """Return the value of rank 0, so that all ranks make the same decision; it must be picklable."""
    if not _sends():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


@torch.no_grad()
def sync_module(module: nn.Module, device: torch.device) -> None:
    """Give a module the parameters and buffers of rank 0. device: the device of the exchanged tensors.

    Tensors without their own values are not changed: those on a meta device, and parts of a distributed tensor.
    """
    if not _sends():
        return
    for tensor in chain(module.parameters(), module.buffers()):
        if is_lazy(tensor) or tensor.is_meta or type(tensor.data) is not Tensor or not tensor.numel():
            continue
        values = tensor.to(device).reshape(-1).view(torch.uint8)  # bytes, because backends do not support every dtype
        first = values.clone()
        distributed.broadcast(first, src=0)
        if not torch.equal(first, values):  # equal values are not written, because a file may be mapped into the memory
            tensor.copy_(first.view(tensor.dtype).view(tensor.shape))


def sync_buffers(modules: Iterable[nn.Module]) -> None:
    """Give modules the same buffers on all ranks: the mean of running statistics, and the others of rank 0.

    Sends one message for each dtype, however many buffers there are.
    """
    # Called after every optimizer update. The check comes before torch.no_grad, which costs ten times as much.
    if not _sends():
        return
    with torch.no_grad():
        averaged: set[int] = set()
        by_dtype: dict[torch.dtype, dict[int, Tensor]] = {}  # keyed by identity: a shared buffer is sent once
        for submodule in (submodule for module in modules for submodule in module.modules()):
            for name, buffer in submodule.named_buffers(recurse=False):
                by_dtype.setdefault(buffer.dtype, {})[id(buffer)] = buffer
                if name in ("running_mean", "running_var"):
                    averaged.add(id(buffer))
        for dtype, buffers in by_dtype.items():
            sent_dtype = torch.uint8 if dtype == torch.bool else dtype  # bool has no sum
            # A sum over the ranks yields both kinds: ranks contribute 1 / world_size each, or rank 0 alone contributes.
            contributions = [
                buffer / world_size()
                if key in averaged
                else buffer.to(sent_dtype)
                if rank() == 0
                else torch.zeros_like(buffer, dtype=sent_dtype)
                for key, buffer in buffers.items()
            ]
            flat = torch.cat([contribution.reshape(-1) for contribution in contributions])
            distributed.all_reduce(flat)
            sizes = [contribution.numel() for contribution in contributions]
            for buffer, reduced in zip(buffers.values(), torch.split(flat, sizes), strict=True):
                buffer.copy_(reduced.view_as(buffer))


def _sends() -> bool:
    """Return whether collectives exchange messages."""
    return is_distributed() and not _alone.get()
