"""A torch Dataset or DataLoader that yields `(inputs, labels)`, as a split."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdkit.data.batch import Batch, as_targets, collate
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.errors import DataError

DatasetOrLoader = Dataset[Any] | DataLoader[Any]
D = TypeVar("D", bound=Dataset[Any])


class DatasetSplit(Split):
    """A map-style Dataset of `(inputs, labels)` as a split; its ids count from `first_id`.

    class_count: if set, labels of every batch are checked to be below it; on a GPU a loss would only report
    "device-side assert triggered".
    """

    class_count: int | None = None

    def __init__(self, dataset: Dataset[Any], first_id: int) -> None:
        self.dataset = dataset
        rows = len(dataset)  # type: ignore[arg-type]  # torch leaves the length of a Dataset untyped
        self.ids = torch.arange(first_id, first_id + rows)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Tensor, draw: int) -> Batch:
        """Return these rows, collated as torch's DataLoader does by default."""
        if is_plain(self.dataset, TensorDataset):  # indexing once is faster than collating single samples
            inputs, labels = [tensor.index_select(0, rows.to(tensor.device)) for tensor in self.dataset.tensors]
        else:
            inputs, labels = as_pair(collate([self.dataset[row] for row in rows.tolist()]))
        if self.class_count is not None:
            _require_valid_labels(labels, self.class_count)
        return Batch(inputs, as_targets(labels), self.ids.index_select(0, rows), draw)


class CheckedLoaderSplit(LoaderSplit):
    """The batches of a DataLoader; if `class_count` is set, labels of every batch are checked to be below it."""

    class_count: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if self.class_count is not None:
                _require_valid_labels(batch.labels, self.class_count)
            yield batch


def as_split(name: str, data: DatasetOrLoader, first_id: int) -> DatasetSplit | CheckedLoaderSplit:
    """Return the data as a split. Raises DataError if it is empty, has no length, or is neither Dataset nor DataLoader.

    name: "train", "validation" or "test", for error messages. first_id: the id of its first sample.
    """
    if isinstance(data, DataLoader):
        try:
            len(data)
        except TypeError as error:
            raise DataError(f"the {name} data is a DataLoader without a length, which a stage has to know") from error
        return CheckedLoaderSplit(data)
    # torch's IterableDataset has neither; a duck-typed dataset with both is fine
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataError(
            f"the {name} data is a {type(data).__name__}; expected a Dataset with a length, or a DataLoader around it"
        )
    if len(data) == 0:
        raise DataError(f"the {name} data is empty")
    return DatasetSplit(data, first_id)


def first_batch(name: str, data: DatasetOrLoader | DatasetSplit | CheckedLoaderSplit) -> Batch:
    """Return the first sample, or the first batch of a loader. Raises DataError unless it is (inputs, labels)."""
    split = data if isinstance(data, (DatasetSplit, LoaderSplit)) else as_split(name, data, 0)
    try:
        if isinstance(split, LoaderSplit):
            inputs, labels = as_pair(next(iter(split.loader)))
            batch = Batch(inputs, as_targets(labels))
        else:
            batch = split.batch(torch.tensor([0]), 0)
    except StopIteration:
        raise DataError(f"the {name} data is empty") from None
    except (TypeError, ValueError) as error:  # from unpacking anything but a pair
        raise DataError(f"the {name} data must yield pairs (inputs, labels): {error}") from error
    if not isinstance(batch.labels, Tensor):
        raise DataError(f"the labels of the {name} data are a {type(batch.labels).__name__}; expected a tensor")
    return batch


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


def _require_valid_labels(labels: Any, class_count: int) -> None:
    """Raise DataError for class indices outside [0, class_count); other kinds of labels pass."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 1 or not len(labels):
        return  # no class indices
    least, most = (int(label) for label in torch.aminmax(labels))
    if least < 0 or most >= class_count:
        invalid = most if most >= class_count else least
        raise DataError(f"a label is {invalid}, and there are {class_count} classes, numbered 0 to {class_count - 1}")
