"""Where a memory keeps what it knows of a sample, and which other samples it is asked about."""

import torch
from torch import Tensor, nn

# Odd multipliers and shifts of a well-known mixing function (MurmurHash3's finaliser), as signed integers.
_MIX = (-49064778989728563, -4265267296055464877)
_STEP = 7046029254386353131


class Rows(nn.Module):
    """A row for each sample id, given out in the order of coming; when there are no more, the oldest one's anew."""

    known: Tensor
    given: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("known", torch.full((count,), torch.iinfo(torch.int64).min))
        self.register_buffer("given", torch.zeros((), dtype=torch.int64))

    def forward(self, ids: Tensor, *, remember: bool) -> Tensor:
        """Return the rows of these ids, (batch,); those not remembered have the rows that they would be given."""
        ids = ids.to(self.known.device)
        matches = self.known == ids[:, None]  # one pass without waiting for the device, as a sorted search needs
        found, rows = matches.any(1), matches.int().argmax(1)
        first = (ids == ids[:, None]).int().argmax(1)  # the same id twice in a batch has one row
        new = ~found & (first == torch.arange(len(ids), device=ids.device))
        fresh = (self.given + new.cumsum(0) - 1) % len(self.known)
        rows = torch.where(found, rows, fresh[first])
        if remember:
            self.known[rows] = ids
            self.given += new.sum()
        return rows


def drawn(blocks: tuple[Tensor, Tensor], count: int, negatives: int, seeds: Tensor) -> Tensor:
    """Return numbers below `count` outside of each sample's block, (batch, negatives), any of them as likely.

    blocks: where each begins and ends, both (batch,); of a block that leaves nothing, numbers from anywhere. Drawn by
    mixing seeds, (batch,), with the places 0, 1, ...: the same on any device, with no generator to be saved.
    """
    begin, end = (each[:, None] for each in blocks)
    width = (end - begin) * (end - begin < count)
    places = torch.arange(negatives, device=seeds.device)
    numbers = _mixed(_mixed(_mixed(seeds))[:, None] + places * _STEP).remainder(count - width)
    return torch.where(numbers < begin, numbers, numbers + width)


def other_rows(rows: Tensor, count: int, negatives: int, seed: Tensor) -> Tensor:
    """Return rows other than a sample's own, (batch, negatives), below `count`: a function of row, place and seed."""
    return drawn((rows, rows + 1), count, negatives, rows * _STEP + seed)


def rows_of_other_classes(rows: Tensor, classes: Tensor, negatives: int, seed: Tensor) -> Tensor:
    """Return rows whose class, among the classes of all rows, is not a sample's own, (batch, negatives)."""
    ordered, order = classes.sort(stable=True)
    own = classes[rows]
    blocks = torch.searchsorted(ordered, own), torch.searchsorted(ordered, own, right=True)
    return order[drawn(blocks, len(classes), negatives, rows * _STEP + seed)]


def _mixed(numbers: Tensor) -> Tensor:
    """Return 64-bit numbers in which every bit depends on every bit of what was given."""
    for factor in _MIX:
        numbers = (numbers ^ ((numbers >> 33) & 0x7FFFFFFF)) * factor
    return numbers ^ ((numbers >> 33) & 0x7FFFFFFF)
