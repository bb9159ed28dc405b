"""Bookkeeping of a memory bank: the row of each sample, and the random rows that it is contrasted with.

Negatives are drawn by hashing instead of a random generator, so they are the same on any device and after a resume, and
there is no generator state to save.
"""

import torch
from torch import Tensor, nn

# Odd multipliers of MurmurHash3's 64-bit finaliser, as signed integers.
_MULTIPLIERS = (-49064778989728563, -4265267296055464877)
_STEP = 7046029254386353131  # a large odd number that spreads consecutive integers over 64 bits


class RowIndex(nn.Module):
    """Map sample ids to rows of a memory bank, in order of arrival; a full bank reuses the oldest row."""

    ids: Tensor
    assigned: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        # the id of each row, (count,); unused rows hold the smallest integer, which no sample has as its id
        self.register_buffer("ids", torch.full((count,), torch.iinfo(torch.int64).min))
        # how many rows have been assigned so far, including reused ones
        self.register_buffer("assigned", torch.zeros((), dtype=torch.int64))

    def forward(self, ids: Tensor, *, remember: bool) -> Tensor:
        """Return the rows of these ids, (batch,). New ids get a new row, which is stored only if `remember`."""
        ids = ids.to(self.ids.device).contiguous()
        if not len(ids):  # argmax needs at least one number
            return ids
        # Sorted again in each call, which for large tables takes far less time than a comparison of all pairs.
        sorted_ids, order = self.ids.sort()
        positions = torch.searchsorted(sorted_ids, ids).clamp(max=len(order) - 1)
        present, rows = sorted_ids[positions] == ids, order[positions]
        first = (ids == ids[:, None]).int().argmax(1)  # an id that occurs twice in a batch gets one row
        new = ~present & (first == torch.arange(len(ids), device=ids.device))
        fresh = (self.assigned + new.cumsum(0) - 1) % len(self.ids)
        rows = torch.where(present, rows, fresh[first])
        if remember:
            self.ids[rows] = ids
            self.assigned += new.sum()
        return rows


def draw_rows(rows: Tensor, count: int, negatives: int, seed: Tensor) -> Tensor:
    """Return rows below `count` other than the sample's, (batch, negatives), a function of the row and the seed."""
    return _draw_outside((rows, rows + 1), count, negatives, rows * _STEP + seed)


def draw_rows_of_other_classes(rows: Tensor, classes: Tensor, negatives: int, seed: Tensor) -> Tensor:
    """Return rows of other classes than the sample's, (batch, negatives). classes: the class of every row."""
    # sorted by class, the rows to exclude are one contiguous block
    sorted_classes, order = classes.sort(stable=True)
    excluded = classes[rows]
    blocks = torch.searchsorted(sorted_classes, excluded), torch.searchsorted(sorted_classes, excluded, right=True)
    return order[_draw_outside(blocks, len(classes), negatives, rows * _STEP + seed)]


def _draw_outside(blocks: tuple[Tensor, Tensor], count: int, negatives: int, seeds: Tensor) -> Tensor:
    """Return uniform numbers below `count` outside of each sample's block, (batch, negatives).

    blocks: the start and the end of each block, both (batch,). A block that covers all numbers is ignored. seeds:
    (batch,); number k of a sample is a hash of its seed and k.
    """
    begin, end = (bound[:, None] for bound in blocks)
    width = (end - begin) * (end - begin < count)
    steps = torch.arange(negatives, device=seeds.device)
    numbers = _mix_bits(_mix_bits(_mix_bits(seeds))[:, None] + steps * _STEP).remainder(count - width)
    # numbers from the block on move up by its width, which skips the block
    return torch.where(numbers < begin, numbers, numbers + width)


def _mix_bits(numbers: Tensor) -> Tensor:
    """Return 64-bit hashes in which every bit depends on every bit of the input."""
    for factor in _MULTIPLIERS:
        # torch shifts signed integers arithmetically, so the copies of the sign bit are masked out
        numbers = (numbers ^ ((numbers >> 33) & 0x7FFFFFFF)) * factor
    return numbers ^ ((numbers >> 33) & 0x7FFFFFFF)
