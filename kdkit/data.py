"""What flows through a run: batches, the splits they come from, and the order they come in."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdkit.errors import DataError

Part = tuple[int, int]  # which of so many processes
_ORDER, _LOADER = 1, 2  # what a seed is for: no two of them draw the same numbers

WORKERS = 4  # at most, where their number is chosen: so many copy batches faster than any net takes them

Task = Literal["multiclass", "multilabel", "regression"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples and what is known of them.

    inputs: a tensor, or a (named) tuple or dict of tensors, each (batch, ...).
    labels: (batch,) int64 for multiclass, (batch, classes) float of 0 and 1 for multilabel.
    ids: (batch,) int64, unique per sample; None where the data cannot tell its samples apart.
    draw: which of its deterministic augmentations each sample is shown in; None where unknown.
    ids_on_cpu: the ids of a batch that was moved to a device, so that to look samples up need not wait for it.
    """

    inputs: Any
    labels: Tensor
    ids: Tensor | None = None
    draw: int | None = None
    ids_on_cpu: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`, copied without waiting where its memory is pinned."""
        if self.labels.device == device:
            return self
        ids = None if self.ids is None else self.ids.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        return replace(self, inputs=moved(self.inputs, device), labels=labels, ids=ids, ids_on_cpu=self.ids)

    def rows(self, rows: Tensor) -> "Batch":
        """Return some of its samples, (samples,) int64 on the CPU."""
        here = rows.to(self.labels.device, non_blocking=True)
        return replace(
            self,
            inputs=_each(self.inputs, lambda tensor: tensor[here]),
            labels=self.labels[here],
            ids=None if self.ids is None else self.ids[here],
            ids_on_cpu=None if self.ids_on_cpu is None else self.ids_on_cpu[rows],
        )

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory (called by torch's DataLoader); what is on a device stays there."""
        ids = None if self.ids is None else _pinned(self.ids)
        return replace(self, inputs=_each(self.inputs, _pinned), labels=_pinned(self.labels), ids=ids)

    def __len__(self) -> int:
        return self.labels.shape[0]


class Split(Protocol):
    """Samples that can be fetched by row. A sample is a pure function of (seed, id, draw).

    It may have `groups`, (rows,) int64, the same number for samples that are not independent, such as records of one
    patient, which intervals of scores then draw together; `labels`, (rows, ...), so that they need not be fetched to be
    counted; and `parallel = True`, where batches take time and other processes may fetch them, so that they do beside
    a GPU.
    """

    @property
    def ids(self) -> Tensor:
        """(rows,) int64, unique per sample over all splits."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, draw: int) -> Batch:
        """Return the samples in these rows, (samples,) int64, in this order and in this draw of their augmentation."""
        ...


class Data(Protocol):
    """The samples of an experiment: what is learned from, chosen on and reported on.

    It may have a `summary`, a text that says what was read and what was left out, and `notices`, lines that a reader
    of its figures must know. Both are read when a run begins, after its splits. Where its fingerprint does not change
    with each training sample, it has a `train_digest` that does, or that is None where not all of them can be seen.
    Where code of the user's own changes its training samples, it has this in `augment`, such as a tuple of callables,
    so that recorded answers depend on that code too.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """The names, in the order of the label columns (or of the class indices)."""
        ...

    @property
    def task(self) -> Task:
        """What the labels are: see Batch."""
        ...

    @property
    def draws(self) -> int | None:
        """How many deterministic augmentations each sample has; None where their randomness is unknown."""
        ...

    @property
    def fingerprint(self) -> str:
        """A text that changes whenever any sample does."""
        ...

    @property
    def train(self) -> "Split | Stream":
        """What is learned from."""
        ...

    @property
    def select(self) -> "Split | Stream":
        """What epochs and thresholds are chosen on."""
        ...

    @property
    def test(self) -> "Split | Stream | None":
        """What is reported on; None to report on `select`."""
        ...


class Batches(Protocol):
    """Batches one after the other, as many as its length says."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Stream:
    """Batches from a DataLoader of the user's own, in the order and with the randomness it has."""

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for given in self.loader:
            if isinstance(given, Mapping) or len(given) != 2:
                raise DataError(
                    f"a DataLoader yields pairs (inputs, labels); got a {type(given).__name__} of {len(given)}"
                )
            inputs, labels = given
            yield Batch(inputs, as_targets(labels))


def batches(
    split: Split | Stream,
    size: int,
    *,
    order: Tensor | None = None,
    draw: int | None = 0,
    workers: int | None = 0,
    pin: bool = False,
    part: Part = (0, 1),
) -> "Batches":
    """Return the split's batches, `size` samples each, in row order or in `order` ((rows,) int64).

    part: of each batch, what falls to one process (see `own_part`).
    workers: processes that fetch them; 0 fetches them in this one; None chooses. pin: put them in page-locked memory,
    from which they are copied to a GPU without waiting.
    """
    if isinstance(split, Stream):
        return split
    workers = _helpful(split, pin) if workers is None else workers
    rows = order if order is not None else torch.arange(len(split))
    wholes = torch.split(rows, size)
    fetched = _Fetched(split, wholes if part == (0, 1) else [own_part(each, part) for each in wholes], draw or 0)
    if workers == 0 and not pin:
        return fetched  # a DataLoader would add its own cost to every step
    own = torch.Generator().manual_seed(torch.initial_seed())  # a loader draws a number, which dropout must not miss
    return DataLoader(fetched, batch_size=None, num_workers=workers, pin_memory=pin, generator=own)


def own_part(rows: Tensor, part: Part) -> Tensor:
    """Return the rows of a batch that fall to one process, as many for each but for one more of the first.

    Where a process would have fewer than two, which batch norm cannot take, each has all of them.
    """
    number, count = part
    return rows if len(rows) < 2 * count else torch.tensor_split(rows, count)[number]


def training_order(split: Split | Stream, batch_size: int, seed: int, epoch: int) -> Tensor | None:
    """Return the order of a training epoch; None where a user's own loader has its own.

    A last batch of a single sample is left out, since batch norm cannot take it.
    """
    if isinstance(split, Stream):
        return None
    order = shuffled(len(split), seed, epoch)
    return order[:-1] if len(order) % batch_size == 1 and len(order) > batch_size > 1 else order


def as_targets(labels: Tensor) -> Tensor:
    """Return labels as losses take them: indicator columns as floats, all else as it is."""
    indicators = isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point()
    return labels.float() if indicators else labels


def shuffled(rows: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch, (rows,) int64: a function of (seed, epoch) and of nothing else."""
    own = seed_from(seed, epoch, _ORDER)  # not the seed of the epoch's dropout, or both would draw the same numbers
    return torch.randperm(rows, generator=torch.Generator().manual_seed(own))


def seed_from(*numbers: int) -> int:
    """Return a 63-bit seed made of several numbers, so that (1, 2) and (2, 1) differ."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:  # splitmix64, one round per number
        mixed = (mixed ^ (number & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


def moved(value: Any, device: torch.device) -> Any:
    """Return a tensor, or a (named) tuple, list or dict of tensors, on `device`."""
    return _each(value, lambda tensor: tensor.to(device, non_blocking=True))


def _helpful(split: Split, pin: bool) -> int:
    """Return how many processes to fetch batches with: those that would not take the CPU from the net."""
    if not (pin and getattr(split, "parallel", False)):
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(WORKERS, processors - 1)


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_each(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_each(item, change) for item in value)
    return value


class _Fetched(Dataset[Batch]):
    """A split seen as a list of whole batches, so that a DataLoader's workers fetch a batch at a time."""

    def __init__(self, split: Split, rows: Sequence[Tensor], draw: int) -> None:
        self.split = split
        self.rows = rows
        self.draw = draw

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.split.batch(self.rows[index], self.draw)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.rows:
            yield self.split.batch(rows, self.draw)
