"""A torch Dataset or DataLoader that yields `(inputs, labels)`, as a split."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from kdkit.data.batch import Batch, as_targets, collate, items_of
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.data.labels import LabelCheck, mark_unknown
from kdkit.errors import DataError

DatasetOrLoader = Dataset[Any] | DataLoader[Any]
D = TypeVar("D", bound=Dataset[Any])


class DatasetSplit(Split):
    """A map-style Dataset of `(inputs, labels)` as a split; its ids count from `first_id`.

    name: "train", "validation" or "test", for error messages.
    label_check: if set, it is called with the labels of every batch; on a GPU a loss would only report "device-side
    assert triggered". unknown: the label that stands for an unknown one, which becomes NaN. per_position: whether
    labels are classes of positions, (samples, *positions).
    """

    label_check: LabelCheck | None = None
    unknown: float | None = None
    per_position = False

    def __init__(self, name: str, dataset: Dataset[Any], first_id: int) -> None:
        self.name = name
        self.dataset = dataset
        rows = len(dataset)  # type: ignore[arg-type]  # torch leaves the length of a Dataset untyped
        self.ids = torch.arange(first_id, first_id + rows)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: Tensor) -> tuple[Any, Any]:
        """Return the inputs and the labels of these rows, collated as torch's DataLoader does by default."""
        if is_plain(self.dataset, TensorDataset):  # indexing once is faster than collating single samples
            inputs, labels = [tensor.index_select(0, rows.to(tensor.device)) for tensor in self.dataset.tensors]
        else:
            with _explain_unequal_samples(self.name):
                inputs, labels = as_pair(collate([self.dataset[row] for row in rows.tolist()]))
        return inputs, labels

    def batch(self, rows: Tensor, draw: int) -> Batch:
        """Return these rows, with labels in the form that losses take."""
        inputs, labels = self.read(rows)
        if self.unknown is None:
            labels = as_targets(labels, per_position=self.per_position)
        else:
            labels = mark_unknown(labels, self.unknown)
        if self.label_check is not None:
            self.label_check(labels, rows)
        return Batch(inputs, labels, self.ids.index_select(0, rows), draw)


class CheckedLoaderSplit(LoaderSplit):
    """The batches of a DataLoader, with the options of `DatasetSplit`."""

    label_check: LabelCheck | None = None
    unknown: float | None = None

    def __init__(self, name: str, loader: "DataLoader[Any]") -> None:
        super().__init__(loader)
        self.name = name

    def __iter__(self) -> Iterator[Batch]:
        with _explain_unequal_samples(self.name):
            for batch in super().__iter__():
                if self.unknown is not None:
                    batch = replace(batch, labels=mark_unknown(batch.labels, self.unknown))
                if self.label_check is not None:
                    self.label_check(batch.labels)
                yield batch


def as_split(name: str, data: DatasetOrLoader, first_id: int) -> DatasetSplit | CheckedLoaderSplit:
    """Return the data as a split. Raises DataError if it is empty, has no length, or is neither Dataset nor DataLoader.

    name: "train", "validation" or "test", for error messages. first_id: the id of its first sample.
    """
    if isinstance(data, DataLoader):
        try:
            len(data)
        except TypeError as error:
            raise DataError(
                f"the {name} data is a DataLoader without a length, which a stage has to know; define __len__ of its "
                f"{type(data.dataset).__name__}: the number of samples of an epoch"
            ) from error
        return CheckedLoaderSplit(name, data)
    if isinstance(data, IterableDataset):  # it inherits a __getitem__ that raises, and may have a length
        raise DataError(
            f"the {name} data is a {type(data).__name__}, which is an IterableDataset and has no rows; expected a "
            "Dataset with a length, or a DataLoader around it: DataLoader(dataset, batch_size=...), for which the "
            "dataset defines __len__"
        )
    # a duck-typed dataset with both is fine
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataError(
            f"the {name} data is a {type(data).__name__}; expected a Dataset with a length, or a DataLoader around it"
        )
    if len(data) == 0:
        raise DataError(f"the {name} data is empty")
    return DatasetSplit(name, data, first_id)


def first_batch(name: str, data: DatasetOrLoader | DatasetSplit | CheckedLoaderSplit) -> Batch:
    """Return the first sample, or the first batch of a loader, with its labels unchanged.

    Raises DataError unless it is (inputs, labels).
    """
    split = data if isinstance(data, (DatasetSplit, CheckedLoaderSplit)) else as_split(name, data, 0)
    try:
        if isinstance(split, LoaderSplit):
            with _explain_unequal_samples(name):
                inputs, labels = as_pair(next(iter(split.loader)))
        else:
            inputs, labels = split.read(torch.tensor([0]))
    except StopIteration:
        raise DataError(f"the {name} data is empty") from None
    except (TypeError, ValueError) as error:  # from unpacking anything but a pair
        raise DataError(f"the {name} data must yield pairs (inputs, labels): {error}") from error
    if not isinstance(labels, Tensor):
        pack = " with equal sizes for all samples: pack them, such as with torch.cat, and let the losses unpack them"
        raise DataError(
            f"the labels of the {name} data are a {type(labels).__name__}; expected a tensor"
            f"{'' if items_of(labels) is None else pack}"
        )
    return Batch(inputs, labels)


@contextmanager
def _explain_unequal_samples(name: str) -> Iterator[None]:
    """Raise DataError instead of torch's error about samples of different shapes, which names no split or remedy."""
    try:
        yield
    except RuntimeError as error:
        shapes = re.search(r"equal size, but got \[(.*?)\] at entry \d+ and \[(.*?)\] at entry", str(error))
        if shapes is None:
            raise
        raise DataError(
            f"samples of the {name} data have different shapes, such as ({shapes[1]}) and ({shapes[2]}), and cannot be "
            "stacked; crop or pad them in the Dataset, or pass a DataLoader(dataset, batch_size=..., collate_fn=...) "
            "whose collate_fn pads a batch"
        ) from error


def as_pair(sample: Any) -> Any:
    """Return the sample. Raises DataError for a dict, which would unpack into its keys."""
    if isinstance(sample, Mapping):
        raise DataError(
            f"a sample is a dict with {', '.join(map(repr, sample))}; expected a pair (inputs, labels), in which the "
            "inputs may be a dict: wrap the Dataset so that it returns one"
        )
    return sample


def is_plain(dataset: object, cls: type[D]) -> TypeGuard[D]:
    """Return whether the dataset is a `cls` with its `__getitem__`: a subclass may change samples or draw them."""
    return isinstance(dataset, cls) and type(dataset).__getitem__ is cls.__getitem__


def dataset_of(data: DatasetOrLoader | Split | LoaderSplit) -> Any:
    """Return the dataset inside a split or DataLoader."""
    dataset = data.loader if isinstance(data, LoaderSplit) else data
    return dataset.dataset if isinstance(dataset, DataLoader | DatasetSplit) else dataset


def visible_labels(split: DatasetSplit | CheckedLoaderSplit) -> Tensor | None:
    """Return the labels, (samples, ...), if they can be seen without reading samples; otherwise None."""
    if isinstance(split, LoaderSplit) and split.loader.collate_fn is not default_collate:
        return None  # user code may change the labels of the dataset
    return _labels_of(dataset_of(split))


def _labels_of(dataset: Any) -> Tensor | None:
    if is_plain(dataset, Subset):
        labels = _labels_of(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, IterableDataset):
        return None  # its samples may come in any order
    if is_plain(dataset, TensorDataset):
        targets = dataset.tensors[1] if len(dataset.tensors) == 2 else None
    else:
        targets = getattr(dataset, "targets", None)  # the convention of torchvision's datasets
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        labels = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):  # `targets` of user code may hold anything, such as names or boxes
        return None
    return labels if labels.ndim and len(labels) else None
