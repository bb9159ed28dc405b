"""Data of one's own: any torch Dataset or DataLoader that yields `(inputs, labels)`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from kdkit.data.dataset import LoaderSplit, Split, Task
from kdkit.data.torch_splits import DatasetSplit, LoaderStream, Yours, first_batch, is_plain, pair_of, split_of
from kdkit.errors import DataError


class TorchData:
    """An experiment's data from torch Datasets or DataLoaders that yield `(inputs, labels)`.

    inputs keep their type: what comes from numpy as float64 has to be made float32 for a net of float32.
    labels: int64 class indices (multiclass), floats of 0 and 1 by class (multilabel), or other floats (regression).
    classes: their names; where None the `classes` of the dataset, as ImageFolder has them, or else their numbers.
    select: what epochs and thresholds are chosen on; test: what is reported on, `select` again where there is none.
    draws: 1 promises that a sample is always the same; None, the default but for a TensorDataset, that it may be not.
    A DataLoader keeps its own order, batch size and randomness, and its samples have no ids.
    Raises DataError for splits that are empty, iterable only, or not of this form, and for labels beyond the classes
    where they can be seen without reading every sample (TensorDataset, `targets`, a Subset of these).
    """

    def __init__(
        self,
        train: Yours,
        validation: Yours,
        test: Yours | None = None,
        *,
        classes: Sequence[str] | None = None,
        task: Task | None = None,
        draws: int | None = None,
    ) -> None:
        if isinstance(classes, str):
            raise DataError(
                f"classes is a list of names; got the text {classes!r}: pass [{classes!r}], or list(...) of it"
            )
        given = {"train": train, "validation": validation, "test": test}
        self._splits: dict[str, DatasetSplit | LoaderStream] = {}
        first = 0
        for name, one in given.items():
            if one is None:
                continue
            self._splits[name] = split = split_of(name, one, first)
            first += len(split)
        fixed = all(_is_fixed(one) for one in given.values() if one is not None)
        streamed = any(isinstance(one, LoaderSplit) for one in self._splits.values())
        if draws not in (None, 1):
            raise DataError(f"draws is 1, for samples that are always the same, or None; got {draws!r}")
        self.draws = None if streamed else draws or (1 if fixed else None)
        labels = first_batch("train", self._splits["train"]).labels
        self.task: Task = task or _task(labels)
        self.classes = tuple(classes) if classes is not None else self._named(labels)
        if self.task == "multiclass":
            for name, split in self._splits.items():
                if not _require_known(name, split, len(self.classes)):
                    split.classes = len(self.classes)

    @property
    def train(self) -> Split | LoaderSplit:
        """What is learned from."""
        return self._splits["train"]

    @property
    def validation(self) -> Split | LoaderSplit:
        """What epochs and thresholds are chosen on."""
        return self._splits["validation"]

    @property
    def test(self) -> Split | LoaderSplit | None:
        """What is reported on."""
        return self._splits.get("test")

    @property
    def fingerprint(self) -> str:
        """A digest of the sizes and of the first and last samples: kdkit cannot see more of a stranger's data."""
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
        """A digest of every training sample as it is now, for recorded answers; None where not all are in memory."""
        split = self.train
        if isinstance(split, LoaderSplit) or not _is_fixed(split.dataset if isinstance(split, DatasetSplit) else None):
            return None
        digest = hashlib.sha256()
        for rows in torch.split(torch.arange(len(split)), 1024):
            batch = split.batch(rows, 0)
            for content in _bytes((batch.inputs, batch.labels)):
                digest.update(content)
        return digest.hexdigest()

    def _named(self, labels: Tensor) -> tuple[str, ...]:
        """Take the dataset's names of the classes; else number them, by label columns or by the largest index."""
        columns = labels.shape[1] if labels.ndim > 1 else 1
        names = {name: found for name, split in self._splits.items() if (found := class_names(split)) is not None}
        if "train" in names and (self.task == "multiclass" or len(names["train"]) == columns != 1):
            for name, found in names.items():
                if found != names["train"]:
                    raise DataError(
                        f"the classes of the train data are {', '.join(names['train'])}, and those of the {name} data "
                        f"{', '.join(found)}: the same label would mean two things"
                    )
            return names["train"]
        if self.task != "multiclass":
            return tuple(str(index) for index in range(columns))
        largest = max(_largest_label(split) for split in self._splits.values())
        return tuple(str(index) for index in range(largest + 1))


def class_names(one: Yours | Split | LoaderSplit) -> tuple[str, ...] | None:
    """Return the `classes` of a dataset, looked for through every Subset and DataLoader; None where it has none."""
    dataset = _dataset(one)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(each, str) for each in names):
        return None
    return tuple(names)


def _task(labels: Tensor) -> Task:
    if labels.dtype == torch.bool and labels.ndim == 1:
        raise DataError(
            "the labels are bool, one a sample; make them int64 for two classes that exclude each other "
            "(labels.long()), or (samples, 1) for one class that is there or not (labels.unsqueeze(1))"
        )
    if not labels.is_floating_point():
        return "multiclass" if labels.ndim == 1 else "multilabel"
    return "multilabel" if labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all()) else "regression"


def _largest_label(split: Split | LoaderSplit) -> int:
    known = _labels(_dataset(split))
    if known is None:
        raise DataError(
            f"how many classes a {type(_dataset(split)).__name__} has cannot be seen without reading it all; "
            "name them: TorchData(..., classes=[...])"
        )
    return int(known.max())


def _require_known(name: str, split: Split | LoaderSplit, classes: int) -> bool:
    """Return whether all labels can be seen. Raises DataError where one of these is beyond the classes."""
    dataset = _dataset(split)
    known = _labels(dataset)
    if known is None or known.is_floating_point() or (isinstance(split, LoaderSplit) and not _plain(split.loader)):
        return False
    for row in (int(known.argmin()), int(known.argmax())):
        if not 0 <= known[row] < classes:
            _, label = pair_of(dataset[row])  # what is yielded counts: a dataset may change its targets on the way
            if not 0 <= int(label) < classes:
                raise DataError(
                    f"a label of the {name} data is {int(label)} (row {row}), and there are {classes} classes, "
                    f"numbered 0 to {classes - 1}"
                )
    return True


def _plain(loader: DataLoader[Any]) -> bool:
    """Whether what a loader yields is what its dataset holds."""
    return loader.collate_fn is default_collate


def _dataset(one: Yours | Split | LoaderSplit) -> Any:
    loader = one.loader if isinstance(one, LoaderSplit) else one
    if isinstance(loader, DataLoader):
        return loader.dataset
    return loader.dataset if isinstance(loader, DatasetSplit) else loader


def _labels(dataset: Any) -> Tensor | None:
    """Return the labels, (samples,), where they are known without reading a sample."""
    if is_plain(dataset, Subset):
        known = _labels(dataset.dataset)
        return None if known is None else known[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if is_plain(dataset, TensorDataset):
        known = dataset.tensors[1] if len(dataset.tensors) == 2 else None
    else:
        known = getattr(dataset, "targets", None)
    if known is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        labels = torch.as_tensor(known)
    except (TypeError, ValueError, RuntimeError):
        return None
    return labels if labels.ndim == 1 and len(labels) else None


def _bytes(value: Any) -> Iterator[bytes]:
    """Give the type, shape and bytes of every tensor in a tensor, tuple, list or dict, and the keys of a dict."""
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield repr(key).encode()
            yield from _bytes(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _bytes(each)


def _is_fixed(one: object) -> bool:
    """Whether it is known that samples are always the same."""
    while is_plain(one, Subset):
        one = one.dataset
    return is_plain(one, TensorDataset)
