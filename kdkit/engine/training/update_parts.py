"""The part of each batch in an update of the weights, so that several batches give the update of one large batch."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.engine.distributed.data_parallel import rank_share
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.training.term_counts import Count, count_of, unknown_count
from kdkit.utils.collectives import all_reduce_mean, is_distributed, world_size
from kdkit.utils.devices import widest_float


class UpdatePart(NamedTuple):
    """The part of a batch in an update of the weights.

    ends_update: whether the weights are updated after this batch. divisor: divides its losses; it is the number of
    samples in the update divided by the number in the batch, so that every sample has the same weight. rank_weight: the
    weight of this rank's part of the batch in the mean over ranks. is_repeated: whether each of several ranks has the
    whole batch. samples: the number that the losses of this rank represent. factors: multiply the terms that are not a
    mean over samples, by label; None if all terms are.
    """

    ends_update: bool = True
    divisor: float = 1.0
    rank_weight: float = 1.0
    is_repeated: bool = False
    samples: float = 0.0
    factors: Mapping[str, Tensor | float] | None = None

    def scaled(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the losses times their factors, in float32 or a higher precision."""
        if self.factors is None:
            return losses
        scaled = {label: loss.to(torch.promote_types(loss.dtype, torch.float32)) for label, loss in losses.items()}
        for label, factor in self.factors.items():
            scaled[label] = scaled[label] * (factor.to(scaled[label].dtype) if isinstance(factor, Tensor) else factor)
        return scaled


class Updates:
    """Groups the batches of a stage into updates of `accumulate_steps`. The last update of an epoch may have fewer.

    All batches of an update are read before the first is trained on if a term is a mean over labels or positions, which
    must be counted, or if batch sizes are uncertain. The update then has the gradient of one batch with all of their
    rows, even if several ranks have a part of each.
    sized: whether the batch sizes that are known in advance are certain.
    """

    def __init__(self, open_stage: OpenStage, *, sized: bool) -> None:
        terms, context = open_stage.module.terms, open_stage.context
        self.device = open_stage.module.progress.device
        self.every = every = open_stage.stage.training.accumulate_steps
        self._is_distributed = is_distributed()
        divides = every > 1 or self._is_distributed
        counts = {term.label: count_of(term, context) for term in terms} if divides else {}
        self._sums = [label for label, count in counts.items() if count == "sum"]
        self._counts: dict[str, Count] = {label: count for label, count in counts.items() if callable(count)}
        self._reads_ahead = bool(self._sums or self._counts) or (every > 1 and not sized)
        notices = [unknown_count(term, context) for term in terms] if divides else []
        self.notices = [notice for notice in notices if notice is not None]

    def of_epoch(
        self, batches: Iterable[Batch], sizes: Sequence[int] | None, first: int, count: int
    ) -> Iterator[tuple[Batch, UpdatePart]]:
        """Yield the batches of an epoch from number `first` on, on the device, with their parts.

        sizes: of all batches of the epoch, over all ranks, if they are known. count: the number of batches per epoch.
        """
        if self._reads_ahead:
            yield from self._read_ahead(iter(batches), sizes, first)
            return
        parts = update_parts(sizes or [1] * count, self.every)
        for index, batch in enumerate(batches, start=first):
            batch = batch.to(self.device)  # only batches of a user-defined DataLoader are not there yet
            if self._is_distributed and sizes is not None:  # ranks divide batches of known sizes
                yield batch, _part_of_rank(batch, parts[index], sizes[index])
            else:
                part = parts[index]
                yield batch, part if part.samples == len(batch) else part._replace(samples=len(batch))

    def _read_ahead(
        self, batches: Iterator[Batch], sizes: Sequence[int] | None, first: int
    ) -> Iterator[tuple[Batch, UpdatePart]]:
        while update := [batch.to(self.device) for batch in islice(batches, self.every)]:
            end = first + len(update)
            if self._is_distributed and sizes is not None:
                global_sizes = sizes[first:end]
            else:  # a user-defined DataLoader may drop samples, so its sizes are not certain
                global_sizes = [max(1, len(batch)) for batch in update]
            parts = deque(zip(update, self._parts(update, global_sizes), strict=True))
            update.clear()  # so that no batch stays in memory after its step
            while parts:
                yield parts.popleft()
            first = end

    def _parts(self, update: Sequence[Batch], global_sizes: Sequence[int]) -> list[UpdatePart]:
        """Return the parts of the batches of an update. global_sizes: of the batches, over all ranks."""
        planned = zip(update, update_parts(global_sizes, len(global_sizes)), global_sizes, strict=True)
        parts = [_part_of_rank(batch, part, size) for batch, part, size in planned]
        # The fraction of each batch that this rank represents: less than 1 if all ranks have the whole batch.
        shares = [part.samples / max(1, len(batch)) for batch, part in zip(update, parts, strict=True)]
        counts = self._counted(update, shares)
        total = world_size() * all_reduce_mean(torch.stack(counts).sum(0)) if counts else None
        for index, part in enumerate(parts):
            # The step multiplies every term by rank_weight / divisor, which is right for a mean over samples, and
            # averages the gradients over the ranks. This factor undoes both.
            inverse = part.divisor / part.rank_weight * world_size()
            factors: dict[str, Tensor | float] = dict.fromkeys(self._sums, shares[index] * inverse)
            if total is not None:
                # If the count is 0, the loss is 0, and 0 / 0 would be NaN.
                of_terms = counts[index] * inverse / total.clamp(min=torch.finfo(total.dtype).tiny)
                factors.update(zip(self._counts, of_terms.unbind(), strict=True))
            parts[index] = part._replace(factors=factors or None)
        return parts

    def _counted(self, update: Sequence[Batch], shares: Sequence[float]) -> list[Tensor]:
        """Return the counts of each batch, (terms,); empty if nothing needs to be counted."""
        if not self._counts:
            return []
        dtype = widest_float(self.device)
        return [
            torch.stack([count(batch).to(dtype) for count in self._counts.values()]) * share
            for batch, share in zip(update, shares, strict=True)
        ]


def _part_of_rank(batch: Batch, part: UpdatePart, global_size: int) -> UpdatePart:
    """Return this rank's part of a batch. global_size: that of the batch over all ranks."""
    weight, samples = rank_share(len(batch), global_size)
    is_repeated = is_distributed() and len(batch) == global_size
    return part._replace(rank_weight=weight, is_repeated=is_repeated, samples=samples)


def update_parts(sizes: Sequence[int], every: int) -> list[UpdatePart]:
    """Return the part of each batch of an epoch in its update of `every` batches; the last update may have fewer.

    sizes: the number of samples in each batch.
    """
    if every == 1:
        return [UpdatePart(samples=size) for size in sizes]
    updates = [sizes[first : first + every] for first in range(0, len(sizes), every)]
    return [
        UpdatePart(ends_update=index == len(update) - 1, divisor=sum(update) / size, samples=size)
        for update in updates
        for index, size in enumerate(update)
    ]
