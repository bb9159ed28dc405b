"""The training batches of each epoch of a stage, from rows in a seeded order, or from a stream."""

import copy
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from math import ceil
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Subset

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit, Split
from kdkit.data.device_data import DeviceData
from kdkit.data.label_check import LabelCheck
from kdkit.data.loading import BatchSeed, RowBatches
from kdkit.data.order import (
    length_of,
    rows_of_batches,
    rows_per_pass,
    shard_rows,
    training_batch_sizes,
    training_order,
    training_rows,
)
from kdkit.data.reading import ReadBatches, no_batch
from kdkit.data.torch_splits import StreamSplit, dataset_of
from kdkit.engine.stage.batch_transform import BatchTransform
from kdkit.errors import DataError
from kdkit.recipe.training import Training
from kdkit.utils import collectives
from kdkit.utils.seeds import SeedPurpose, derive_seed


class TrainingBatches:
    """The batches of every epoch of a stage, on the training device, after the data's `batch_transform`.

    Without `Training.steps_per_epoch`, an epoch is one pass over the training data. Otherwise it has that many batches,
    from consecutive passes. The order of rows is a function of (seed, pass), so any epoch can be read again. With
    `steps_per_epoch`, an epoch of a LoaderSplit begins where the last one stopped, a position that `state_dict` holds.
    """

    def __init__(
        self, data: Data, device_data: DeviceData, training: Training, seed: int, label_check: LabelCheck | None = None
    ) -> None:
        self.data, self.split = data, data.train
        self.device_data = device_data
        self.training = training
        self.seed = seed
        self.label_check = label_check
        self.per_epoch = batches_per_epoch(self.split, training)
        self.rows = None if isinstance(self.split, LoaderSplit) else rows_per_pass(self.split)
        self.stream: _Stream | None = None
        if isinstance(self.split, LoaderSplit) and training.steps_per_epoch is not None:
            batched = self.split.batched(training.batch_size, pin=device_data.pins)
            self.stream = _Stream(batched, training.batch_size, seed, label_check)
        self.transform = BatchTransform.from_data(data)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Return the batches of an epoch without the first `skip` ones. Epochs of a stream must be read in order.

        Skipped rows are not read. A user-defined DataLoader must load skipped batches, which happens in this call,
        because the random numbers that its dataset draws may depend on them. A stream is not advanced, because
        `load_state_dict` restores its position.
        """
        split = self.split
        if self.stream is not None:
            batches = self.device_data.moved(self.stream.take(self.per_epoch - skip))
        elif isinstance(split, LoaderSplit):
            batches = self._pass_of_loader(split, epoch)
            for _ in islice(batches, skip):
                pass
        else:
            batches = chain.from_iterable(self._batches_of(split, part) for part in self._segments(epoch, skip))
        return batches if self.transform is None else self.transform.apply_to(batches, self.device_data.device)

    def sizes(self, epoch: int) -> list[int] | None:
        """Return the size of each batch of an epoch; None if a LoaderSplit does not know them."""
        sizes = training_batch_sizes(self.split, self.training.batch_size)
        if sizes is None or self.training.steps_per_epoch is None:
            return sizes
        if isinstance(self.split, LoaderSplit):
            return None  # an epoch may begin at any batch of a pass
        return [size for segment in self._segments(epoch, 0) for size in sizes[segment.first : segment.end]]

    def state_dict(self) -> dict[str, Any] | None:
        """Return the position in a stream; None if any epoch can be read again."""
        return None if self.stream is None else self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> str | None:
        """Restore the position in a stream. Returns a notice if that is not possible."""
        return None if self.stream is None or state is None else self.stream.load_state_dict(state)

    def _pass_of_loader(self, split: LoaderSplit, number: int) -> Iterator[Batch]:
        """Yield the batches of a pass over a user-defined DataLoader, or over a stream that has a length.

        Raises DataError if their number is not the length.
        """
        set_epoch(split, number)
        size, count = self.training.batch_size, 0
        leaves_out_single = isinstance(split, StreamSplit) and size > 1
        for batch in self.device_data.load(split.batched(size, pin=self.device_data.pins), check=self.label_check):
            if leaves_out_single and len(batch) == 1:
                continue
            count += 1
            if count > self.per_epoch:
                break
            yield batch
        if count != self.per_epoch:
            got = "more" if count > self.per_epoch else count
            raise DataError(
                f"the training data must have {self.per_epoch} batches per epoch, its length, but has {got}; if a "
                "sampler draws another number in each epoch, pass Training(steps_per_epoch=N)"
            )

    def _segments(self, epoch: int, skip: int) -> list["_Segment"]:
        """Return the parts of passes over the rows that make up an epoch, without its first `skip` batches."""
        in_pass = _batches_in_pass(self.split, self.training.batch_size)
        first, end = epoch * self.per_epoch + skip, (epoch + 1) * self.per_epoch
        passes = range(first // in_pass, (end - 1) // in_pass + 1)
        segments = [
            _Segment(number, max(0, first - number * in_pass), min(in_pass, end - number * in_pass))
            for number in passes
        ]
        return [segment for segment in segments if segment.first < segment.end]

    def _batches_of(self, split: Split, segment: "_Segment") -> Iterator[Batch]:
        """Return the batches of a part of a pass over the rows, each with the rows of this rank only."""
        size, draws = self.training.batch_size, self.data.draws
        set_epoch(split, segment.number)
        if rows_per_pass(split) != self.rows:
            raise DataError(
                f"the sampler must draw as many rows in each epoch, but its length was {self.rows} and is now "
                f"{rows_per_pass(split)}; for another number in each epoch, pass DataLoader(dataset, sampler=...) as "
                "training data, and Training(steps_per_epoch=N)"
            )
        order = training_order(split, size, self.seed, segment.number)
        rows = rows_of_batches(split, size, order[segment.first * size : segment.end * size])
        rank, is_divided = collectives.rank(), collectives.is_distributed()
        if is_divided:
            rows = tuple(shard_rows(batch_rows, rank, collectives.world_size()) for batch_rows in rows)
        seed = derive_seed(derive_seed(self.seed, segment.number, SeedPurpose.LOADING), rank)
        batches = RowBatches(
            split,
            rows,
            draw=0 if draws is None else segment.number % draws,
            seed=BatchSeed(seed, segment.first, in_process=draws is None),
        )
        keep_draws = 0 if is_divided or draws is None else draws
        return self.device_data.load(
            batches, workers=self.training.workers, check=self.label_check, keep_draws=keep_draws
        )


def batches_per_epoch(split: Split | LoaderSplit, training: Training) -> int:
    """Return the number of batches of an epoch. Raises DataError for data without a length or `steps_per_epoch`."""
    return training.steps_per_epoch or _batches_in_pass(split, training.batch_size)


def passes_over(split: Split | LoaderSplit, training: Training) -> int:
    """Return how often a stage reads the rows of its training data; for a LoaderSplit, the number of epochs."""
    if training.steps_per_epoch is None or isinstance(split, LoaderSplit):
        return training.epochs
    return ceil(training.epochs * training.steps_per_epoch / _batches_in_pass(split, training.batch_size))


def set_epoch(split: Split | LoaderSplit, number: int) -> None:
    """Pass the epoch number to every sampler, dataset and loader with a method `set_epoch`.

    The method has the meaning of that of torch's DistributedSampler.
    """
    loader = split.loader if isinstance(split, LoaderSplit) else None
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    dataset: Any = dataset_of(split)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    owners += [dataset, getattr(dataset, "source", None)]  # batches that are not from a DataLoader have a source
    owners += [] if isinstance(split, LoaderSplit) else [split.sampler]
    for owner in {id(owner): owner for owner in owners}.values():
        if callable(getattr(owner, "set_epoch", None)):
            owner.set_epoch(number)  # type: ignore[union-attr]  # None has no such attribute


def _batches_in_pass(split: Split | LoaderSplit, batch_size: int) -> int:
    length = length_of(split)
    if length is None:
        raise DataError(
            f"the training data ({type(dataset_of(split)).__name__}) has no length; pass the number of batches per "
            "epoch: Training(steps_per_epoch=...)"
        )
    if isinstance(split, LoaderSplit) and not isinstance(split, StreamSplit):
        return length
    rows = length if isinstance(split, LoaderSplit) else rows_per_pass(split)
    return ceil(training_rows(rows, batch_size) / batch_size)


class _Segment(NamedTuple):
    """The batches of a pass from `first` up to, but not including, `end`. number: of the pass."""

    number: int
    first: int
    end: int


class _Stream:
    """The batches of a LoaderSplit, one pass after another. seed: of the stage."""

    def __init__(self, split: LoaderSplit, batch_size: int, seed: int, check: LabelCheck | None) -> None:
        self.split, self.check = copy.copy(split), check  # its seed is set below
        self.batch_size, self.seed = batch_size, seed
        self.number = 0  # of the pass
        self._iterator: Iterator[Batch] | None = None
        self._yielded = False  # whether this pass has yielded a batch

    def take(self, count: int) -> Iterator[Batch]:
        """Yield the next batches. Raises DataError if a pass yields none."""
        for _ in range(count):
            yield self._next()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the pass, and the position in it if the loader or its dataset has a state dict."""
        source = self._source()
        state = None if source is None else source.state_dict()
        # A checkpoint is loaded without unpickling, so it can only hold plain values.
        return {"pass": self.number, "source": state if _is_plain(state) else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> str | None:
        """Restore the position, or begin the next pass and return a notice."""
        source = self._source()
        self.number, self._yielded = state["pass"], True
        if source is not None and state["source"] is not None:
            source.load_state_dict(state["source"])
            return None
        self.number += 1
        return (
            "the training data, a stream or DataLoader, cannot restore its position, so the resumed run begins a new "
            "pass over it, and does not repeat the same bits; with a state_dict of plain values and load_state_dict, "
            "it would"
        )

    def _next(self) -> Batch:
        while True:
            if self._iterator is None:
                set_epoch(self.split, self.number)
                # A run that resumes within a pass opens the loader once more, which must not change what steps draw.
                self.split.seed = derive_seed(self.seed, self.number, SeedPurpose.LOADING)
                self._iterator = iter(ReadBatches(self.split, self.check))
            batch = next(self._iterator, None)
            if batch is None:
                if not self._yielded:
                    raise no_batch("training")
                self.number, self._iterator, self._yielded = self.number + 1, None, False
            elif len(batch) > 1 or self.batch_size == 1 or not isinstance(self.split, StreamSplit):
                self._yielded = True
                return batch

    def _source(self) -> Any:
        """Return the object with the position: the loader, or its dataset if no worker process has a copy of it."""
        loader, dataset = self.split.loader, dataset_of(self.split)
        # The source is the loader of the user if it is not a DataLoader, such as torchdata's StatefulDataLoader.
        in_process = [dataset, getattr(dataset, "source", None)] if getattr(loader, "num_workers", 1) == 0 else []
        candidates = [loader, *in_process]
        has_state = (item for item in candidates if hasattr(item, "state_dict") and hasattr(item, "load_state_dict"))
        return next(has_state, None)


def _is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, strings, tensors and None, in dicts, lists and tuples."""
    if type(value) is dict:
        return all(_is_plain(part) for part in (*value, *value.values()))
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) in (bool, int, float, str, bytes, type(None), Tensor)
