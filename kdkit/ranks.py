"""What the processes of a run tell each other, where there are several."""

import torch
from torch import Tensor, distributed


def several() -> bool:
    """Whether this run has several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all processes, (all rows, ...), in the order of their ranks; each may give another count."""
    if not several():
        return rows
    counts = [torch.zeros_like(_count(rows)) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, _count(rows))
    sizes = [int(count) for count in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def averaged(values: Tensor) -> Tensor:
    """Return the mean over all processes, of the same shape."""
    if not several():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def _count(rows: Tensor) -> Tensor:
    return torch.tensor([len(rows)], device=rows.device)
