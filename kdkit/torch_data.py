"""Data of one's own: any torch Dataset or DataLoader that yields `(inputs, labels)`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from kdkit.data import Batch, Split, Stream, Task, as_targets
from kdkit.errors import DataError

Yours = Dataset[Any] | DataLoader[Any]


class DatasetSplit:
    """A map-style Dataset of `(inputs, labels)` as a split; its ids count from `first`."""

    def __init__(self, dataset: Dataset[Any], first: int) -> None:
        self.dataset = dataset
        count = len(dataset)  # type: ignore[arg-type]  # torch leaves the length of a Dataset untyped
        self.ids = torch.arange(first, first + count)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Tensor, draw: int) -> Batch:
        """Return these rows, stacked as torch stacks them."""
        if isinstance(self.dataset, TensorDataset):  # one indexing instead of a stack of single samples
            inputs, labels = (tensor[rows] for tensor in self.dataset.tensors)
        else:
            inputs, labels = default_collate([self.dataset[row] for row in rows.tolist()])
        return Batch(inputs, as_targets(labels), self.ids[rows], draw)


class TorchData:
    """An experiment's data from torch Datasets or DataLoaders that yield `(inputs, labels)`.

    labels: int64 class indices (multiclass), floats of 0 and 1 by class (multilabel), or other floats (regression).
    select: what epochs and thresholds are chosen on; test: what is reported on, `select` again where there is none.
    draws: 1 promises that a sample is always the same; None, the default but for a TensorDataset, that it may be not.
    A DataLoader keeps its own order, batch size and randomness, and its samples have no ids.
    Raises DataError for splits that are empty, iterable only, or not of this form.
    """

    def __init__(
        self,
        train: Yours,
        select: Yours,
        test: Yours | None = None,
        *,
        classes: Sequence[str] | None = None,
        task: Task | None = None,
        draws: int | None = None,
    ) -> None:
        given = {"train": train, "select": select, "test": test}
        self._splits: dict[str, Split | Stream] = {}
        first = 0
        for name, one in given.items():
            if one is None:
                continue
            self._splits[name] = split = _split(name, one, first)
            first += len(split)
        fixed = all(_is_fixed(one) for one in given.values() if one is not None)
        streamed = any(isinstance(one, Stream) for one in self._splits.values())
        if draws not in (None, 1):
            raise DataError(f"draws is 1, for samples that are always the same, or None; got {draws!r}")
        self.draws = None if streamed else draws or (1 if fixed else None)
        labels = _first_batch("train", self.train).labels
        self.task: Task = task or _task(labels)
        self.classes = tuple(classes) if classes is not None else self._counted(labels)

    @property
    def train(self) -> Split | Stream:
        """What is learned from."""
        return self._splits["train"]

    @property
    def select(self) -> Split | Stream:
        """What epochs and thresholds are chosen on."""
        return self._splits["select"]

    @property
    def test(self) -> Split | Stream | None:
        """What is reported on."""
        return self._splits.get("test")

    @property
    def fingerprint(self) -> str:
        """A digest of the sizes and of the first and last samples: kdkit cannot see more of a stranger's data."""
        digest = hashlib.sha256()
        for name, split in self._splits.items():
            digest.update(f"{name}:{len(split)}:{self.classes}".encode())
            if not isinstance(split, Stream) and self.draws is not None:
                batch = split.batch(torch.tensor([0, len(split) - 1]), 0)
                for content in _bytes((batch.inputs, batch.labels)):
                    digest.update(content)
        return digest.hexdigest()

    def _counted(self, labels: Tensor) -> tuple[str, ...]:
        """Number the classes: as many as there are label columns, or as the largest index of any split says."""
        if self.task != "multiclass":
            return tuple(str(index) for index in range(labels.shape[1] if labels.ndim > 1 else 1))
        largest = max(_largest_label(split) for split in self._splits.values())
        return tuple(str(index) for index in range(largest + 1))


def _split(name: str, one: Yours, first: int) -> Split | Stream:
    if isinstance(one, DataLoader):
        try:
            len(one)
        except TypeError as error:
            raise DataError(f"the {name} data is a DataLoader without a length, which a stage has to know") from error
        return Stream(one)
    if not hasattr(one, "__len__") or not hasattr(one, "__getitem__"):
        raise DataError(
            f"the {name} data is a {type(one).__name__}; expected a Dataset with a length, or a DataLoader around it"
        )
    if len(one) == 0:
        raise DataError(f"the {name} data is empty")
    return DatasetSplit(one, first)


def _first_batch(name: str, split: Split | Stream) -> Batch:
    try:
        batch = next(iter(split)) if isinstance(split, Stream) else split.batch(torch.tensor([0]), 0)
    except StopIteration:
        raise DataError(f"the {name} data is empty") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"the {name} data must yield pairs (inputs, labels): {error}") from error
    if not isinstance(batch.labels, Tensor):
        raise DataError(f"the labels of the {name} data are a {type(batch.labels).__name__}; expected a tensor")
    return batch


def _task(labels: Tensor) -> Task:
    if not labels.is_floating_point():
        return "multiclass" if labels.ndim == 1 else "multilabel"
    return "multilabel" if labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all()) else "regression"


def _largest_label(split: Split | Stream) -> int:
    dataset = split.loader.dataset if isinstance(split, Stream) else cast(DatasetSplit, split).dataset
    known = dataset.tensors[1] if isinstance(dataset, TensorDataset) else getattr(dataset, "targets", None)
    if known is None or len(known) == 0:
        raise DataError(
            f"how many classes a {type(dataset).__name__} has cannot be seen without reading it all; "
            "name them: TorchData(..., classes=[...])"
        )
    return int(torch.as_tensor(known).max())


def _bytes(value: Any) -> Iterator[bytes]:
    """Give the bytes of every tensor in a tensor, tuple, list or dict, of any type that torch has."""
    if isinstance(value, Tensor):
        yield value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, (tuple, list, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _bytes(each)


def _is_fixed(one: Yours) -> bool:
    while isinstance(one, Subset):
        one = one.dataset
    return isinstance(one, TensorDataset)
