"""A torch Dataset or DataLoader that yields `(inputs, labels)`, as a split."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from kdkit.data.batch import Batch, as_targets
from kdkit.data.dataset import LoaderSplit
from kdkit.errors import DataError

Yours = Dataset[Any] | DataLoader[Any]
D = TypeVar("D", bound=Dataset[Any])


class DatasetSplit:
    """A map-style Dataset of `(inputs, labels)` as a split; its ids count from `first`.

    classes: how many there are, where labels are looked at as they come: a GPU would only say "device-side assert".
    """

    classes: int | None = None

    def __init__(self, dataset: Dataset[Any], first: int) -> None:
        self.dataset = dataset
        count = len(dataset)  # type: ignore[arg-type]  # torch leaves the length of a Dataset untyped
        self.ids = torch.arange(first, first + count)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Tensor, draw: int) -> Batch:
        """Return these rows, stacked as torch stacks them."""
        if is_plain(self.dataset, TensorDataset):  # one indexing instead of a stack of single samples
            inputs, labels = [tensor.index_select(0, rows.to(tensor.device)) for tensor in self.dataset.tensors]
        else:
            inputs, labels = pair_of(default_collate([self.dataset[row] for row in rows.tolist()]))
        if self.classes is not None:
            _require_below(labels, self.classes)
        return Batch(inputs, as_targets(labels), self.ids.index_select(0, rows), draw)


class LoaderStream(LoaderSplit):
    """The batches of a DataLoader, whose labels are looked at where it is known how many classes there are."""

    classes: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if self.classes is not None:
                _require_below(batch.labels, self.classes)
            yield batch


def split_of(name: str, one: Yours, first: int) -> DatasetSplit | LoaderStream:
    """Return it as a split whose ids count from `first`. Raises DataError where it is empty or has no length."""
    if isinstance(one, DataLoader):
        try:
            len(one)
        except TypeError as error:
            raise DataError(f"the {name} data is a DataLoader without a length, which a stage has to know") from error
        return LoaderStream(one)
    if not hasattr(one, "__len__") or not hasattr(one, "__getitem__"):
        raise DataError(
            f"the {name} data is a {type(one).__name__}; expected a Dataset with a length, or a DataLoader around it"
        )
    if len(one) == 0:
        raise DataError(f"the {name} data is empty")
    return DatasetSplit(one, first)


def first_batch(name: str, one: Yours | DatasetSplit | LoaderStream) -> Batch:
    """Return the first sample, or the first batch of a loader. Raises DataError where it is no (inputs, labels)."""
    split = one if isinstance(one, (DatasetSplit, LoaderSplit)) else split_of(name, one, 0)
    try:
        if isinstance(split, LoaderSplit):
            inputs, labels = pair_of(next(iter(split.loader)))
            batch = Batch(inputs, as_targets(labels))
        else:
            batch = split.batch(torch.tensor([0]), 0)
    except StopIteration:
        raise DataError(f"the {name} data is empty") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"the {name} data must yield pairs (inputs, labels): {error}") from error
    if not isinstance(batch.labels, Tensor):
        raise DataError(f"the labels of the {name} data are a {type(batch.labels).__name__}; expected a tensor")
    return batch


def pair_of(sample: Any) -> Any:
    """Refuse a dict, which would come apart into its keys."""
    if isinstance(sample, Mapping):
        raise DataError(
            f"a sample is a dict with {', '.join(map(repr, sample))}; expected a pair (inputs, labels), in which the "
            "inputs may be a dict: wrap the Dataset so that it returns one"
        )
    return sample


def _require_below(labels: Any, classes: int) -> None:
    """Raise DataError for class indices beyond the classes."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 1 or not len(labels):
        return
    least, most = (int(each) for each in torch.aminmax(labels))
    if least < 0 or most >= classes:
        wrong = most if most >= classes else least
        raise DataError(f"a label is {wrong}, and there are {classes} classes, numbered 0 to {classes - 1}")


def is_plain(one: object, kind: type[D]) -> TypeGuard[D]:
    """Whether it is of a kind and yields what that does: one's own may change it, or draw it at random."""
    return isinstance(one, kind) and type(one).__getitem__ is kind.__getitem__
