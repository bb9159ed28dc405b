"""Use a torch Dataset or DataLoader that yields `(inputs, labels)` as a split."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from kdkit.data.batch import Batch, as_targets, content_of, items_of, map_tensors, rebuild, select_rows
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.data.label_check import LabelCheck
from kdkit.data.read_errors import explaining
from kdkit.data.reading import reading
from kdkit.data.samples import (
    TENSORS_OF_TABLE,
    SampleKeys,
    as_weights,
    collate_samples,
    collating,
    missing_labels,
    require_samples,
    require_stacked,
)
from kdkit.errors import DataError
from kdkit.utils.files import is_file
from kdkit.utils.randomness import preserve_rng_state, seeded_on_cpu
from kdkit.utils.reprs import describe_numbers
from kdkit.utils.seeds import SeedPurpose, derive_seed

D = TypeVar("D", bound=Dataset[Any])

_NO_BATCH = object()
_REORDERED = 4  # samples that are read in two orders


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """Training data without labels, for `TorchData` and `distill`: a Dataset or DataLoader of inputs.

    The whole sample, or batch of a DataLoader, is the inputs: a tensor, a tuple, or a mapping. If a tuple or mapping
    has one tensor, as in TensorDataset(inputs), this tensor is the input.
    """

    data: Dataset[Any] | DataLoader[Any] | Iterable[Any]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.data).__name__})"


DatasetOrLoader = Dataset[Any] | DataLoader[Any] | Iterable[Any] | Unlabelled
Collate = Callable[[list[Any]], Any]  # makes a batch of samples


@dataclass(eq=False, repr=False)
class DatasetSplit(Split):
    """A map-style Dataset of `(inputs, labels)` as a split. Its ids start at `first_id`.

    name: "train", "validation" or "test", for error messages. keys: for samples that are mappings.
    targets: returns the labels of a batch in the form that losses take. label_check: called with the labels of every
    batch; None if all are known to be valid. On a GPU, a loss would only report "device-side assert triggered".
    is_drawn: whether a sample is read with random numbers that depend only on its row and draw. collate_fn: makes a
    batch of samples. lengths, sampler: see `Split`.
    """

    name: str
    dataset: Any
    first_id: int
    keys: SampleKeys
    targets: Callable[[Any], Any] = as_targets
    label_check: LabelCheck | None = None
    labels: Tensor | None = None
    is_drawn: bool = False
    collate_fn: Collate = collate_samples
    lengths: Tensor | None = None
    sampler: Sampler[int] | None = None

    def __post_init__(self) -> None:
        self.ids = torch.arange(self.first_id, self.first_id + len(self.dataset))
        # Looked up once, not in every batch.
        self.has_own_collate = self.collate_fn is not collate_samples
        self.tensors = None if self.has_own_collate else tensors_of(self.dataset)
        # The start of messages about its samples.
        self.must_yield = f"the {self.name} data must yield"
        if self.has_own_collate:
            self.must_yield = f"the collate_fn of the {self.name} data must return"
        if self.tensors is not None:
            self.keys.split(self.tensors, self.must_yield)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: Tensor, draw: int = 0) -> tuple[Any, Any, Any]:
        """Return the inputs, the labels, and the weights or None."""
        if self.tensors is not None:  # faster than collating single samples
            if self.keys.inputs_only or not isinstance(self.dataset, TensorDataset):
                batch = map_tensors(self.tensors, lambda tensor: select_rows(tensor, rows.to(tensor.device)))
                return self.keys.split(batch, self.must_yield)
            columns = [select_rows(tensor, rows.to(tensor.device)) for tensor in self.tensors]
            # The same as `keys.split`, whose checks take as long as the rest of this method.
            return columns[0], columns[1], columns[2] if len(columns) == 3 else None
        samples = self._samples(rows, draw)
        with explaining(lambda: self._position(rows)), nullcontext() if self.has_own_collate else collating(self.name):
            batch = self.collate_fn(samples)
        return self.keys.split(batch, self.must_yield)

    def _samples(self, rows: Tensor, draw: int) -> list[Any]:
        # Hugging Face datasets read several rows together ten times as fast. A subclass of a torch dataset may inherit
        # this method, and change samples in __getitem__ only.
        if hasattr(self.dataset, "__getitems__") and not isinstance(self.dataset, Dataset) and not self.is_drawn:
            with explaining(lambda: self._position(rows)):
                return list(self.dataset.__getitems__(rows.tolist()))
        samples: list[Any] = []
        row = 0
        with explaining(lambda: f"the sample in row {row} of the {self.name} data{_file_of(self.dataset, row)}"):
            for row in rows.tolist():
                with seeded_on_cpu(derive_seed(row, draw, SeedPurpose.DRAW)) if self.is_drawn else nullcontext():
                    samples.append(self.dataset[row])
        for row, sample in zip(rows.tolist(), samples, strict=True):
            if sample is None:
                raise DataError(
                    f"the sample in row {row} of the {self.name} data is None; leave out such rows, as with "
                    "torch.utils.data.Subset(dataset, rows)"
                )
        return samples

    def _position(self, rows: Tensor) -> str:
        return f"a batch of the {self.name} data (rows {describe_numbers(rows.tolist())})"

    def batch(self, rows: Tensor, draw: int) -> Batch:
        """Return these rows, with labels in the form that losses take."""
        inputs, labels, weights = self.read(rows, draw)
        labels = missing_labels(inputs) if labels is None else self.targets(labels)
        if labels.shape[:1] != rows.shape:
            raise DataError(
                f"{self.must_yield} a label for each sample, because samples have ids; got labels "
                f"{tuple(labels.shape)} for {len(rows)} samples (rows {describe_numbers(rows.tolist())}); leave "
                "samples out with torch.utils.data.Subset instead; other labels, such as one for each node of graphs, "
                "need a DataLoader"
            )
        if self.label_check is not None:
            self.label_check(labels, rows)
        if weights is not None:
            weights = as_weights(weights, labels, self.must_yield)
        return Batch(inputs, labels, self.ids.index_select(0, rows), draw, None, weights)


@dataclass(eq=False, repr=False)
class CheckedLoaderSplit(LoaderSplit):
    """The batches of a DataLoader, with the options of `DatasetSplit`.

    samples: the split ends after the batch that reaches this number of samples; None: after the loader's last batch.
    """

    name: str
    loader: DataLoader[Any]
    keys: SampleKeys
    samples: int | None = None
    targets: Callable[[Any], Any] = as_targets
    label_check: LabelCheck | None = None

    def __post_init__(self) -> None:
        super().__init__(self.loader)
        self.must_yield = f"the {self.name} data must yield"

    def __iter__(self) -> Iterator[Batch]:
        samples = 0
        with collating(self.name):
            for index, batch in enumerate(super().__iter__()):
                if self.label_check is not None:
                    self.label_check(batch.labels, None, index)
                yield batch
                samples += len(batch)
                if self.samples is not None and samples >= self.samples:
                    return  # before the next batch is loaded, which may take long

    def _as_targets(self, labels: Any) -> Any:
        return self.targets(labels)


class StreamSplit(CheckedLoaderSplit):
    """The samples of an IterableDataset without a DataLoader, in batches of any size. The last one may be smaller."""

    def batched(self, size: int, *, pin: bool = False) -> "StreamSplit":
        """Return the stream in batches of this size."""
        dataset = self.loader.dataset if self.samples is None else _First(self.loader.dataset, self.samples)
        return replace(self, loader=DataLoader(dataset, size, collate_fn=self.loader.collate_fn, pin_memory=pin))


TorchSplit = DatasetSplit | CheckedLoaderSplit


class _First(IterableDataset[Any]):
    """The first samples of a stream."""

    def __init__(self, stream: Any, count: int) -> None:
        self.stream, self.count = stream, count

    def __iter__(self) -> Iterator[Any]:
        return islice(self.stream, self.count)


class _Batches(IterableDataset[Any]):
    """Any iterable of batches as a dataset, such as the loaders of timm and WebDataset, which are not DataLoaders."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Any]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


def as_split(
    name: str,
    data: DatasetOrLoader,
    keys: SampleKeys,
    *,
    first_id: int = 0,
    samples: int | None = None,
    collate_fn: Collate | None,
) -> TorchSplit:
    """Return the data as a split. Raises DataError if it is empty, or neither a Dataset nor a loader.

    name: "train", "validation" or "test", for error messages. first_id: the id of the first sample of a Dataset.
    samples: how many samples of a stream or DataLoader are read; None reads it to its end. collate_fn: of a Dataset or
    stream; None for the usual one.
    """
    collate_fn = collate_fn or collate_samples
    if isinstance(data, Unlabelled):
        if name != "train":
            raise DataError(
                f"the {name} data needs labels for the metrics; to compare a student with its teacher instead, use the "
                "teacher's classes as labels: TensorDataset(inputs, teacher(inputs).argmax(1))"
            )
        keys = SampleKeys(inputs_only=True)
        return as_split(name, data.data, keys, first_id=first_id, collate_fn=collate_fn)
    _refuse_table(name, dataset_of(data))
    if isinstance(data, DataLoader):
        return CheckedLoaderSplit(name, data, keys, samples)
    dataset: Any = data
    is_stream = isinstance(data, IterableDataset)  # inherits a __getitem__ that raises, and may have a length
    pipeline = getattr(data, "pipeline", None)
    # The WebLoader of WebDataset is an IterableDataset around a DataLoader.
    holds_loader = is_stream and isinstance(pipeline, list) and any(isinstance(part, DataLoader) for part in pipeline)
    if is_stream and not holds_loader:
        return StreamSplit(name, DataLoader(dataset, collate_fn=collate_fn), keys, samples)
    is_iterator = hasattr(data, "__next__")  # an iterator can be read only once
    if holds_loader or (hasattr(data, "__iter__") and not is_iterator and not hasattr(data, "__getitem__")):
        return CheckedLoaderSplit(name, DataLoader(_Batches(data), batch_size=None), keys, samples)
    # A duck-typed dataset with both methods is fine.
    if is_iterator or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataError(
            f"the {name} data is a {type(data).__name__}; expected a Dataset with a length, an IterableDataset, or a "
            "DataLoader around one"
        )
    if len(dataset) == 0:
        raise DataError(f"the {name} data is empty")
    return DatasetSplit(name, dataset, first_id, keys, collate_fn=collate_fn)


def _refuse_table(name: str, data: Any) -> None:
    """Raise DataError for a DataFrame of pandas or polars, or a table of pyarrow, whose items are columns."""
    is_table = hasattr(data, "columns") and (hasattr(data, "to_numpy") or hasattr(data, "to_pandas"))
    if is_table and not isinstance(data, Dataset):
        raise DataError(
            f"the {name} data is a {type(data).__name__}, whose items are columns, not samples; make tensors of it: "
            f"{TENSORS_OF_TABLE}"
        )


def first_batch(split: TorchSplit) -> Batch:
    """Return the first sample, or the first batch of a loader, with its labels unchanged.

    Raises DataError if it is not (inputs, labels).
    """
    inputs, labels, weights = _read_first(split)
    if labels is None and split.keys.inputs_only:
        labels = missing_labels(inputs)
    _require_labels(split.name, labels)
    if isinstance(split, LoaderSplit):
        require_samples(labels, 0, split.must_yield)
    return Batch(inputs, labels, weights=as_weights(weights, labels, split.must_yield))


def _read_first(split: TorchSplit) -> tuple[Any, Any, Any]:
    """Return the inputs, labels and weights of the first sample or batch. Raises DataError if there is none."""
    if not isinstance(split, LoaderSplit):
        return split.read(torch.tensor([0]))
    name = split.name
    with reading(f"the first batch of the {name} data", split.loader), collating(name):
        batch = next(iter(split.loader), _NO_BATCH)
    if batch is _NO_BATCH:
        advice = "; its only batch is dropped, pass drop_last=False" if split.loader.drop_last else ""
        raise DataError(f"the {name} data is empty{advice}")
    if split.loader.collate_fn is default_collate:
        require_stacked(batch)
    return split.keys.split(batch, split.must_yield)


def _require_labels(name: str, labels: Any) -> None:
    """Raise DataError if labels are not a tensor with a dimension of samples."""
    if isinstance(labels, Tensor) and labels.ndim:
        return
    if isinstance(labels, Tensor):
        raise DataError(f"the labels of the {name} data are one number for a whole batch; expected one for each sample")
    advice = ""
    if isinstance(labels, str) or (isinstance(labels, list | tuple) and all(isinstance(x, str) for x in labels)):
        advice = " of class indices: number the classes, such as with names.index(label)"
    elif isinstance(labels, list | tuple) and all(isinstance(x, int | float) for x in labels):
        advice = ": torch.tensor(labels)"
    elif items_of(labels) is not None:
        advice = " with equal sizes for all samples: pack them, such as with torch.cat, and let the losses unpack them"
    raise DataError(f"the labels of the {name} data are a {type(labels).__name__}; expected a tensor{advice}")


def _file_of(dataset: Any, row: int) -> str:
    """Return the file of a sample, such as ", cats/7.jpg", if the dataset lists files as an ImageFolder does, or ""."""
    with suppress(Exception):  # `samples` of a user-defined dataset may be anything, such as texts
        while isinstance(dataset, Subset):
            dataset, row = dataset.dataset, dataset.indices[row]
        file = dataset.samples[row][0]
        return f", {file}," if is_file(Path(file)) else ""
    return ""


def require_order(split: DatasetSplit) -> None:
    """Raise DataError if the collate_fn of a split changes the order of samples, so that ids would be those of others.

    A few samples are read in two orders. Samples that change when they are read again are not compared.
    """
    rows = torch.linspace(0, len(split) - 1, min(_REORDERED, len(split))).long()
    with preserve_rng_state(cuda=False):
        batches = [split.batch(order, 0) for order in (rows, rows.flip(0))]
    if not batches[0].is_divisible:  # such as of graphs
        return

    def contents(batch: Batch) -> list[list[bytes]]:
        parts = map(batch.rows, torch.split(torch.arange(len(batch)), 1))
        return [[*content_of((part.inputs, part.labels))] for part in parts]

    forward, backward = map(contents, batches)
    if forward != backward[::-1] and sorted(forward) == sorted(backward):
        raise DataError(
            f"{split.must_yield} samples in the order in which it gets them, because samples have ids; those in rows "
            f"{describe_numbers(rows.tolist())} have another order; do not sort them, such as by length: "
            "pack_padded_sequence(..., enforce_sorted=False) needs no order"
        )


def is_plain(dataset: object, cls: type[D]) -> TypeGuard[D]:
    """Return whether the dataset is a `cls` that does not override `__getitem__`, which could change samples."""
    return isinstance(dataset, cls) and type(dataset).__getitem__ is cls.__getitem__


def is_fixed(split: TorchSplit) -> bool:
    """Return whether samples are known to never change: those of `tensors_of`, or a Subset of them."""
    if isinstance(split, DatasetSplit) and split.has_own_collate:
        return False
    dataset = dataset_of(split)
    while is_plain(dataset, Subset):
        dataset = dataset.dataset
    return tensors_of(dataset) is not None


def tensors_of(dataset: Any) -> Any:
    """Return the tensors of all samples in a TensorDataset or a StackDataset of tensors; None for other datasets.

    They are in a tuple or a dict, like those of one sample.
    """
    if is_plain(dataset, TensorDataset):
        return dataset.tensors
    if not is_plain(dataset, StackDataset):
        return None
    parts = dict(items_of(dataset.datasets) or ())
    tensors = {key: part if isinstance(part, Tensor) else tensors_of(part) for key, part in parts.items()}
    return None if any(part is None for part in tensors.values()) else rebuild(dataset.datasets, tensors)


def dataset_of(data: DatasetOrLoader | Split | LoaderSplit) -> Any:
    """Return the dataset inside a split or DataLoader."""
    dataset = data.data if isinstance(data, Unlabelled) else data.loader if isinstance(data, LoaderSplit) else data
    return dataset.dataset if isinstance(dataset, DataLoader | DatasetSplit) else dataset
