"""What the processes of a run tell each other, where there are several."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

if distributed.is_available():
    # What DDP imports takes a group that is there for a default argument: its threads would outlive it, and may abort
    # the process at its exit. So it is imported before there is one.
    import torch.distributed.nn

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether this run has several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def world_size() -> int:
    """Return how many processes this run has."""
    return distributed.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return which of them this one is, from 0: the one that writes and speaks."""
    return distributed.get_rank() if is_distributed() else 0


def all_gather(rows: Tensor) -> Tensor:
    """Return the rows of all processes, (all rows, ...), in the order of their ranks; each may give another count."""
    if not is_distributed():
        return rows
    counts = [torch.zeros_like(_count(rows)) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, _count(rows))
    sizes = [int(world_size) for world_size in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def all_gather_objects(values: Sequence[T]) -> list[T]:
    """Return what all processes give, in the order of their ranks: anything that can be pickled, any number of each."""
    if not is_distributed():
        return [*values]
    told: list[Sequence[T]] = [()] * world_size()
    distributed.all_gather_object(told, [*values])
    return [value for each in told for value in each]


def all_reduce_mean(values: Tensor) -> Tensor:
    """Return the mean over all processes, of the same shape."""
    if not is_distributed():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def all_reduce_sum(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the sums over all processes, computed on `device`."""
    if not is_distributed():
        return [*values]
    total = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    sums: list[float] = total.tolist()
    return sums


def barrier() -> None:
    """Wait until every process has come here."""
    if is_distributed():
        distributed.barrier()


def broadcast(value: T) -> T:
    """Return what the first process has, a plain value; so that all decide alike."""
    if not is_distributed():
        return value
    told = [value]
    distributed.broadcast_object_list(told, src=0)
    return told[0]


def sync_buffers(modules: Iterable[nn.Module]) -> None:
    """Give these modules the same buffers in every process: the mean of running statistics, else those of the first.

    One message for each type of number, however many buffers there are.
    """
    if is_distributed():  # asked after every update, and torch's switch of gradients costs ten times as much as asking
        _agree(modules)


@torch.no_grad()
def sync_parameters(module: nn.Module) -> None:
    """Give a module the parameters of the first process."""
    for parameter in module.parameters() if is_distributed() else ():
        distributed.broadcast(parameter, src=0)


@torch.no_grad()
def _agree(modules: Iterable[nn.Module]) -> None:
    means: set[int] = set()
    found: dict[torch.dtype, dict[int, Tensor]] = {}
    for module in (inner for each in modules for inner in each.modules()):
        for name, buffer in module.named_buffers(recurse=False):
            found.setdefault(buffer.dtype, {})[id(buffer)] = buffer
            if name in ("running_mean", "running_var"):
                means.add(id(buffer))
    for dtype, buffers in found.items():
        sent = torch.uint8 if dtype == torch.bool else dtype
        shares = [
            each / world_size()
            if key in means
            else each.to(sent)
            if rank() == 0
            else torch.zeros_like(each, dtype=sent)
            for key, each in buffers.items()
        ]
        flat = torch.cat([each.reshape(-1) for each in shares])
        distributed.all_reduce(flat)
        for buffer, agreed_on in zip(
            buffers.values(), torch.split(flat, [each.numel() for each in shares]), strict=True
        ):
            buffer.copy_(agreed_on.view_as(buffer))


def _count(rows: Tensor) -> Tensor:
    return torch.tensor([len(rows)], device=rows.device)
