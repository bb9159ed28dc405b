"""The data of an experiment from any torch Dataset or DataLoader that yields `(inputs, labels)`."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from kdkit.data.batch import items_of
from kdkit.data.dataset import Data, LoaderSplit, Split, Task
from kdkit.data.torch_splits import (
    CheckedLoaderSplit,
    DatasetOrLoader,
    DatasetSplit,
    as_pair,
    as_split,
    first_batch,
    is_plain,
)
from kdkit.errors import DataError


class TorchData(Data):
    """The data of an experiment from torch Datasets or DataLoaders that yield `(inputs, labels)`.

    Inputs keep their dtype: convert float64 arrays of numpy to float32 for a float32 network.
    Labels are int64 class indices (multiclass), floats of 0 and 1 by class (multilabel), or other floats (regression).

    train: the data that nets are trained on. validation: chooses the best epoch and thresholds. test: metrics are
    reported on it; None to report them on `validation`.
    classes: names of the classes; if None, the `classes` attribute of the dataset, which ImageFolder has, or numbers.
    task: the kind of the labels; if None, derived from the first batch.
    draws: 1 promises that a sample never changes; None, the default except for a TensorDataset, that it may.

    A DataLoader keeps its own order, batch size and randomness, and its samples have no ids.
    Raises DataError for splits that are empty, iterable-style or of another form, and for labels beyond the classes if
    they are visible without reading every sample (TensorDataset, an attribute `targets`, and a Subset of these).
    """

    def __init__(
        self,
        train: DatasetOrLoader,
        validation: DatasetOrLoader,
        test: DatasetOrLoader | None = None,
        *,
        classes: Sequence[str] | None = None,
        task: Task | None = None,
        draws: int | None = None,
    ) -> None:
        if isinstance(classes, str):  # a str is a sequence of letters
            raise DataError(
                f"classes is a list of names; got the text {classes!r}: pass [{classes!r}], or list(...) of it"
            )
        if draws not in (None, 1):
            raise DataError(f"draws is 1, for samples that are always the same, or None; got {draws!r}")
        datasets = {"train": train, "validation": validation}
        if test is not None:
            datasets["test"] = test
        self._splits: dict[str, DatasetSplit | CheckedLoaderSplit] = {}
        first_id = 0  # ids are unique over all splits
        for name, dataset in datasets.items():
            self._splits[name] = split = as_split(name, dataset, first_id)
            first_id += len(split)
        all_fixed = all(map(_is_fixed, datasets.values()))
        has_loader = any(isinstance(split, LoaderSplit) for split in self._splits.values())
        self.draws = None if has_loader else draws or (1 if all_fixed else None)
        labels = first_batch("train", self._splits["train"]).labels
        self.task: Task = task or _task_of(labels)
        self.classes = tuple(classes) if classes is not None else self._default_classes(labels)
        if self.task == "multiclass":
            for name, split in self._splits.items():
                if not _require_labels_in_range(name, split, len(self.classes)):
                    split.class_count = len(self.classes)  # labels that cannot be seen now are checked batch by batch

    @property
    def train(self) -> Split | LoaderSplit:
        """The split that nets are trained on."""
        return self._splits["train"]

    @property
    def validation(self) -> Split | LoaderSplit:
        """The split that the best epoch and thresholds are chosen on."""
        return self._splits["validation"]

    @property
    def test(self) -> Split | LoaderSplit | None:
        """The split that metrics are reported on; None to report them on `validation`."""
        return self._splits.get("test")

    @property
    def fingerprint(self) -> str:
        """A digest of the sizes, the classes, and the first and last samples; reading all samples could take hours."""
        digest = hashlib.sha256()
        for name, split in self._splits.items():
            digest.update(f"{name}:{len(split)}:{self.classes}".encode())
            if not isinstance(split, LoaderSplit) and self.draws is not None:
                batch = split.batch(torch.tensor([0, len(split) - 1]), 0)
                for content in _bytes((batch.inputs, batch.labels)):
                    digest.update(content)
        return digest.hexdigest()

    @property
    def train_digest(self) -> str | None:
        """A digest of all training samples in their present state; None if they are not all in memory."""
        split = self.train
        if not isinstance(split, DatasetSplit) or not _is_fixed(split.dataset):
            return None
        digest = hashlib.sha256()
        for rows in torch.split(torch.arange(len(split)), 1024):  # a copy of 1024 samples at a time
            batch = split.batch(rows, 0)
            for content in _bytes((batch.inputs, batch.labels)):
                digest.update(content)
        return digest.hexdigest()

    def _default_classes(self, labels: Tensor) -> tuple[str, ...]:
        """Return the class names of the datasets; otherwise numbers, by label columns or up to the largest label."""
        columns = labels.shape[1] if labels.ndim > 1 else 1
        all_names = {name: class_names(split) for name, split in self._splits.items()}
        names = {name: classes for name, classes in all_names.items() if classes is not None}
        # A single label column may belong to a dataset with two names, absent and present, so its names are not used.
        if "train" in names and (self.task == "multiclass" or len(names["train"]) == columns != 1):
            for name, classes in names.items():
                if classes != names["train"]:
                    raise DataError(
                        f"the classes of the train data are {', '.join(names['train'])}, and those of the {name} data "
                        f"{', '.join(classes)}: the same label would mean two things"
                    )
            return names["train"]
        if self.task != "multiclass":
            return tuple(str(index) for index in range(columns))
        largest = 0
        for split in self._splits.values():
            visible = _visible_labels(_dataset_of(split))
            if visible is None:
                dataset = type(_dataset_of(split)).__name__
                raise DataError(
                    f"how many classes a {dataset} has cannot be seen without reading it all; "
                    "name them: TorchData(..., classes=[...])"
                )
            largest = max(largest, int(visible.max()))
        return tuple(str(index) for index in range(largest + 1))


def class_names(data: DatasetOrLoader | Split | LoaderSplit) -> tuple[str, ...] | None:
    """Return the `classes` attribute of the dataset inside any Subset and DataLoader; None if it has none."""
    dataset = _dataset_of(data)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _task_of(labels: Tensor) -> Task:
    if labels.dtype == torch.bool and labels.ndim == 1:
        raise DataError(
            "the labels are bool, one a sample; make them int64 for two classes that exclude each other "
            "(labels.long()), or (samples, 1) for one class that is present or not (labels.unsqueeze(1))"
        )
    if not labels.is_floating_point():  # integer labels in columns are multi-hot
        return "multiclass" if labels.ndim == 1 else "multilabel"
    return "multilabel" if labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all()) else "regression"


def _require_labels_in_range(name: str, split: Split | LoaderSplit, class_count: int) -> bool:
    """Return whether all labels are visible. Raises DataError if one of these is beyond the classes."""
    dataset = _dataset_of(split)
    labels = _visible_labels(dataset)
    if labels is None or labels.is_floating_point():
        return False
    if isinstance(split, LoaderSplit) and split.loader.collate_fn is not default_collate:
        return False  # user code may change the labels of the dataset
    for row in (int(labels.argmin()), int(labels.argmax())):
        if not 0 <= labels[row] < class_count:
            _, label = as_pair(dataset[row])  # the yielded label counts: a dataset may remap its `targets`
            if not 0 <= int(label) < class_count:
                raise DataError(
                    f"a label of the {name} data is {int(label)} (row {row}), and there are {class_count} classes, "
                    f"numbered 0 to {class_count - 1}"
                )
    return True


def _dataset_of(data: DatasetOrLoader | Split | LoaderSplit) -> Any:
    dataset = data.loader if isinstance(data, LoaderSplit) else data
    return dataset.dataset if isinstance(dataset, DataLoader | DatasetSplit) else dataset


def _visible_labels(dataset: Any) -> Tensor | None:
    """Return the labels, (samples,), if they can be seen without reading samples; otherwise None."""
    if is_plain(dataset, Subset):
        labels = _visible_labels(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
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
    return labels if labels.ndim == 1 and len(labels) else None


def _is_fixed(dataset: object) -> bool:
    """Return whether the samples are known to be always the same: a TensorDataset, or a Subset of one."""
    while is_plain(dataset, Subset):
        dataset = dataset.dataset
    return is_plain(dataset, TensorDataset)


def _bytes(value: Any) -> Iterator[bytes]:
    """Yield dtype, shape and content of every tensor in a value, nested, and the keys of mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()  # two tensors of other shapes may have the same content
        yield value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
        return
    for key, item in items_of(value) or ():
        if not isinstance(value, (tuple, list)):
            yield repr(key).encode()
        yield from _bytes(item)
