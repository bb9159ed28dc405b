"""Batches on the training device: copied while it computes, or gathered from samples that are kept there."""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from kdkit.data.batch import (
    Batch,
    as_signed,
    has_objects,
    holds_only_tensors,
    is_dense,
    map_tensors,
    nested_tensors,
    select_rows,
)
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.data.label_check import LabelCheck
from kdkit.data.loading import RowBatches
from kdkit.data.reading import ReadBatches, samples_change
from kdkit.utils.memory import available

_SPLITS = 3  # training, validation and test
_SMALL = 4096  # bytes; samples up to this size are gathered for a whole epoch in one kernel
_IN_FLIGHT = 3  # batches that are being copied to a GPU or used there; more would only take memory


class DeviceData:
    """Loads batches from the splits of one data set onto a device.

    share: the share of the free memory of a CUDA device that samples may take. If they fit, they are kept there and
    read once instead of in every epoch. draws: of the training data, see `Data`; if None, nothing is kept because
    samples may change. passes: how often the training data is read in all stages together.
    """

    def __init__(self, device: torch.device, *, share: float, draws: int | None, passes: int) -> None:
        self.device = device
        keeps = device.type == "cuda" and share > 0 and draws is not None
        self._share = share if keeps and passes > (draws or 0) else 0.0
        self._kept: dict[int, KeptSamples] = {}  # by the id of the split

    @property
    def pins(self) -> bool:
        """Whether batches are loaded into pinned memory, so that the copy to the device is asynchronous."""
        return self.device.type == "cuda"

    def load(
        self,
        batches: RowBatches | LoaderSplit,
        *,
        workers: int | None = 0,
        check: LabelCheck | None = None,
        keep_draws: int = 0,
    ) -> Iterator[Batch]:
        """Yield batches on the device, read by `ReadBatches`.

        keep_draws: the number of draws whose samples may be kept on the device. 0 keeps none, such as for one of
        several ranks, which reads other rows in each pass.
        """
        kept = None
        if isinstance(batches, RowBatches):
            kept = self._kept_samples(batches.split, keep_draws)
            if kept is not None and kept.has(batches.rows, batches.draw):
                return kept.batches(batches.rows, batches.draw)
        loaded = self.moved(ReadBatches(batches, check, workers=workers, pin=self.pins))
        return loaded if kept is None or isinstance(batches, LoaderSplit) else kept.keep_all(loaded, batches)

    def moved(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches on the device. On CUDA, the copy overlaps with the step on the previous batch."""
        if self.device.type == "cpu":
            return iter(batches)
        if self.device.type == "cuda":
            return self._copied_in_background(batches)
        return (batch.to(self.device) for batch in batches)

    def _kept_samples(self, split: Split, draws: int) -> "KeptSamples | None":
        """Return the samples of a split that are kept on the device; None if none are."""
        if self._share == 0 or draws == 0:
            return None
        if id(split) not in self._kept:
            if len(self._kept) == _SPLITS:  # the data creates new splits at each access
                return None
            self._kept[id(split)] = KeptSamples(split, draws, self.device, share=self._share)
        return self._kept[id(split)]

    def _copied_in_background(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        copying = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        used: deque[torch.cuda.Event] = deque()
        for batch in batches:
            # The tensors of objects, and sparse and nested ones, cannot be recorded below.
            if has_objects(batch.inputs) or not all(map(is_dense, _tensors(batch))):
                yield batch.to(self.device)
                continue
            if len(used) == _IN_FLIGHT:
                used.popleft().synchronize()  # waits only if batches load faster than the GPU trains
            training = torch.cuda.current_stream(self.device)
            with torch.cuda.stream(copying):
                moved = batch.to(self.device)
            training.wait_stream(copying)
            for tensor in _tensors(moved):
                if tensor.is_cuda:
                    tensor.record_stream(training)
            yield moved
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            event.record(training)
            used.append(event)


class KeptSamples:
    """The samples of a split that are kept on a device, by row and draw.

    share: the share of the device's free memory, when the first batch is kept, that samples may take. If they need
    more, or if samples change when they are read again, nothing is kept.
    """

    def __init__(self, split: Split, draws: int, device: torch.device, *, share: float) -> None:
        self.device = device
        self._split = split  # keeps the split alive, so that its id is not reused
        self._draws, self._share = draws, share
        self._written = torch.zeros(draws, len(split), dtype=torch.bool)
        self._storage: list[Tensor] = []  # (draws, rows, ...) for each tensor of a batch
        self._example: Batch | None = None
        self._ids: Tensor | None = None
        self._gives_up = samples_change(lambda rows: [*_tensors(split.batch(rows, 0))], len(split))

    def has(self, rows: tuple[Tensor, ...], draw: int) -> bool:
        """Return whether the samples in all these rows are kept with this draw. rows: of each batch."""
        return not self._gives_up and draw < self._draws and bool(self._written[draw][torch.cat(rows)].all())

    def keep(self, batch: Batch, rows: Tensor, draw: int) -> None:
        """Keep a batch that is on the device. rows: the rows of its samples, (samples,) int64 on the CPU."""
        if self._gives_up or draw >= self._draws:
            return
        tensors = _tensors(batch)
        if self._example is None and not self._allocate(batch, tensors):
            return
        shapes = [(tuple(stored.shape[2:]), stored.dtype) for stored in self._storage]
        if [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors] != shapes:
            self._give_up()  # samples of different lengths
            return
        index = rows.to(self.device, non_blocking=True)
        for stored, tensor in zip(self._storage, tensors, strict=True):
            as_signed(stored[draw]).index_copy_(0, index, as_signed(tensor))
        if self._ids is not None and batch.ids_on_cpu is not None:
            self._ids[rows] = batch.ids_on_cpu
        self._written[draw, rows] = True

    def keep_all(self, loaded: Iterable[Batch], batches: RowBatches) -> Iterator[Batch]:
        """Yield loaded batches that are on the device, and keep them."""
        for batch, rows in zip(loaded, batches.rows, strict=True):
            self.keep(batch, rows, batches.draw)
            yield batch

    def batches(self, rows: tuple[Tensor, ...], draw: int) -> Iterator[Batch]:
        """Yield batches of kept samples. rows: the rows of each batch, (samples,) int64 on the CPU."""
        sizes = [len(rows_of_batch) for rows_of_batch in rows]
        all_rows = torch.cat(rows)
        index = all_rows.to(self.device)  # for all batches, so that no step waits for the copy
        stored = [tensor[draw] for tensor in self._storage]
        gathered = [
            torch.split(select_rows(tensor, index), sizes) if tensor[0].nbytes <= _SMALL else None for tensor in stored
        ]
        ids_on_cpu = None if self._ids is None else torch.split(self._ids.index_select(0, all_rows), sizes)
        for number, index_of_batch in enumerate(torch.split(index, sizes)):
            tensors = [
                select_rows(tensor, index_of_batch) if of_batches is None else of_batches[number]
                for tensor, of_batches in zip(stored, gathered, strict=True)
            ]
            yield self._as_batch(tensors, draw, None if ids_on_cpu is None else ids_on_cpu[number])

    def _as_batch(self, tensors: list[Tensor], draw: int, ids_on_cpu: Tensor | None) -> Batch:
        assert self._example is not None
        rest = iter(tensors)
        inputs = map_tensors(self._example.inputs, lambda _: next(rest))
        labels = next(rest)
        ids = None if self._example.ids is None else next(rest)
        weights = None if self._example.weights is None else next(rest)
        return Batch(inputs, labels, ids, draw, ids_on_cpu, weights)

    def _allocate(self, batch: Batch, tensors: list[Tensor]) -> bool:
        """Allocate memory for all samples. Return False if they do not fit, or are not tensors."""
        size = len(batch)
        # Items that are not tensors, such as names, cannot be kept: they would stay those of the first batch.
        device, free = batch.labels.device, available(self.device)
        is_batch = holds_only_tensors(batch.inputs) and all(_has_rows(tensor, size, device) for tensor in tensors)
        if not is_batch or not size or free is None:
            self._give_up()
            return False
        needed = sum(tensor.nbytes for tensor in tensors) / size * len(self._split) * self._draws
        if needed > self._share * free:
            self._give_up()
            return False
        self._storage = [
            torch.empty((self._draws, len(self._split), *tensor.shape[1:]), dtype=tensor.dtype, device=self.device)
            for tensor in tensors
        ]
        if batch.ids_on_cpu is not None:
            self._ids = torch.empty(len(self._split), dtype=batch.ids_on_cpu.dtype)
        self._example = batch
        return True

    def _give_up(self) -> None:
        self._gives_up, self._storage, self._example = True, [], None


def _has_rows(tensor: Tensor, size: int, device: torch.device) -> bool:
    """Return whether a tensor is dense, on the device, and has a row for each of `size` samples."""
    return is_dense(tensor) and tensor.ndim > 0 and len(tensor) == size and tensor.device == device


def _tensors(batch: Batch) -> list[Tensor]:
    """Return the tensors of the inputs, the labels, and, if there are any, the ids and weights."""
    return list(nested_tensors((batch.inputs, batch.labels, batch.ids, batch.weights)))
