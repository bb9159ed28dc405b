"""The data of an experiment from any torch Dataset or DataLoader that yields `(inputs, labels)`."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.data import Sampler

from kdkit.data.batch import content_of
from kdkit.data.dataset import Data, LoaderSplit, Task
from kdkit.data.label_check import LabelCheck
from kdkit.data.label_forms import SplitLabels
from kdkit.data.labels import LabelSpec
from kdkit.data.notices import (
    draw_notices,
    evaluation_notices,
    label_notices,
    order_notices,
    split_notices,
    void_notices,
)
from kdkit.data.order import length_of, require_lengths, require_sampler
from kdkit.data.samples import SampleKeys
from kdkit.data.torch_splits import (
    CheckedLoaderSplit,
    Collate,
    DatasetOrLoader,
    DatasetSplit,
    StreamSplit,
    TorchSplit,
    as_split,
    first_batch,
    is_fixed,
    require_order,
)
from kdkit.data.visible_labels import check_visible, class_names, is_renumbered, read_labels, visible_labels
from kdkit.errors import DataError, shortened
from kdkit.utils.devices import default_modes
from kdkit.utils.reprs import describe_count, describe_names, with_names
from kdkit.utils.validation import is_whole_number


class TorchData(Data):
    """The data of an experiment from torch Datasets or DataLoaders that yield `(inputs, labels)`.

    Samples and batches may also be triples with the weight of each sample, a float that kdkit.losses.SampleWeighted
    uses, or mappings. The inputs of a mapping are everything except labels and weights: the value if there is one, or a
    mapping of several values, which networks get as keyword arguments.
    Inputs keep their dtype: convert float64 numpy arrays to float32 for a float32 network.
    Labels are class indices per sample, or per pixel or token, (samples, *positions), or soft labels by class whose
    rows sum to 1 (multiclass), 0 and 1 by class (multilabel), or other floats (regression). For metrics, the class of a
    soft label is the one with the largest value, and mixed labels by class are present above 0.5.

    train: the data that the networks are trained on; Unlabelled(dataset) if it has no labels. validation: the data on
    which the best epoch and the thresholds are chosen. test: the data on which metrics are reported; None to report
    them on `validation`.
    classes: the names of the classes, or their number, and then the names are numbers. If None, the `classes` attribute
    of the dataset, as ImageFolder has it, or numbers up to the largest label if all labels are visible.
    task: the kind of the labels. If None, it is derived from all visible labels of all splits, or from the first batch
    or some samples if the labels are not visible.
    unknown: the value that means unknown in labels by class (multilabel) or in numbers (regression), such as -1 or NaN.
    In a batch, such labels are NaN. Metrics leave them out, and so does a loss in kdkit.losses.IgnoreUnknown.
    ignore_index: the class index that means no label, for a position or a sample. Metrics leave it out, and so do
    kdkit's losses that compare positions or take labels; pass it to losses of torch too. If None, it is -100 for labels
    per position, and also 255 if there are fewer classes.
    draws: the number of versions of a training sample. 1 means that samples never change. A larger number is for random
    augmentations, which are then seeded by the row and the number of the version; epochs use the versions in turn, and
    teacher outputs are cached. None, the default unless the training data is a TensorDataset or a StackDataset of
    tensors, means that a sample may change each time it is read.
    collate_fn: a function that makes a batch of a list of samples, such as one that pads them, as for a DataLoader. It
    must return a label for each sample, and keep their order. None stacks samples. A DataLoader has its own.
    lengths: the length of each training sample, such as its number of tokens. Training batches then have samples of
    about the same length, and less padding. None leaves their order random.
    sampler: a sampler of torch that draws the rows of each training epoch, such as WeightedRandomSampler, or a list of
    rows. Its length is that of an epoch. For each epoch, the global random states of torch, NumPy and Python, and its
    attribute `generator`, are seeded for it. None reads each sample once, in random order.
    labels: the key of the labels in samples that are mappings; None for the one of "label", "labels", "target",
    "targets" and "y" that they have. For batches that are other objects, such as graphs, an attribute; the inputs are
    then the object. weights: the key or the attribute of the weights.
    batch_transform: a function of inputs and labels that returns both, applied to each training batch on the training
    device, such as torchvision's MixUp or timm's Mixup. Teachers and students get the same batch. Because samples may
    be mixed, the batch has no sample ids, and teacher outputs are not cached.
    evaluation_samples: how many samples of a validation or test stream are read, so that the stream may be endless. A
    DataLoader is read to the end of the batch with the last of them. None reads streams and DataLoaders to their ends.

    A DataLoader keeps its own order, batch size, collate_fn and randomness, and its samples have no ids. An
    IterableDataset is read in batches of the stage's batch size; without a length, it needs
    Training(steps_per_epoch=...).
    Raises DataError if a split is empty or has another form, or if the labels of several splits are inconsistent.
    Labels that are beyond the classes or outside [0, 1] are refused before training if they are visible without reading
    every sample (TensorDataset, StackDataset of tensors, an attribute `targets`, and a Subset of these), otherwise when
    their batch is read.
    """

    @default_modes()
    def __init__(
        self,
        train: DatasetOrLoader,
        validation: DatasetOrLoader,
        test: DatasetOrLoader | None = None,
        *,
        classes: Sequence[str] | int | None = None,
        task: Task | None = None,
        draws: int | None = None,
        unknown: float | None = None,
        ignore_index: int | None = None,
        collate_fn: Collate | None = None,
        lengths: Sequence[float] | Tensor | None = None,
        sampler: Sampler[int] | Sequence[int] | None = None,
        labels: str | None = None,
        weights: str | None = None,
        batch_transform: Callable[[Any, Tensor], tuple[Any, Tensor]] | None = None,
        evaluation_samples: int | None = None,
    ) -> None:
        _require_options(task, classes, draws, unknown, ignore_index, evaluation_samples)
        _require_functions(collate_fn=collate_fn, batch_transform=batch_transform)
        datasets = {"train": train, "validation": validation, **({} if test is None else {"test": test})}
        splits = _as_splits(datasets, SampleKeys(labels, weights), evaluation_samples, collate_fn)
        if lengths is not None:
            splits["train"] = _with_lengths(splits["train"], lengths)
        if sampler is not None:
            splits["train"] = _with_sampler(splits["train"], sampler)
        # Read without restoring random states: for a given seed, runs depend on the random numbers that are drawn here.
        first = first_batch(splits["train"])
        self.has_weights = first.weights is not None
        self.has_labels = not splits["train"].keys.inputs_only
        if batch_transform is not None and self.has_weights:
            raise DataError("batch_transform may mix samples, but not their weights; leave out one of them")
        self.batch_transform = batch_transform
        all_labels = {
            name: read_labels(split, unknown, first if name == "train" else None)
            for name, split in splits.items()
            if name != "train" or self.has_labels
        }
        names = {
            name: class_names(split) if name == "train" or not is_renumbered(split) else None
            for name, split in splits.items()
        }
        spec = LabelSpec.derive(
            all_labels,
            names,
            task=task,
            classes=classes,
            unknown=unknown,
            ignore_index=ignore_index,
        )
        self.task, self.classes, self.position_dims = spec.task, spec.classes, spec.position_dims
        self.has_unknown, self.ignored_labels = unknown is not None, spec.ignored
        self._unknown, self._ignore_index = unknown, ignore_index
        self.draws, self._has_stated_draws = _draws_of(splits["train"], draws), draws is not None
        self._splits = {
            name: _with_targets(split, spec, all_labels.get(name), is_drawn=name == "train" and (self.draws or 1) > 1)
            for name, split in splits.items()
        }
        for split in self._splits.values():
            if isinstance(split, DatasetSplit) and split.has_own_collate:
                require_order(split)
        self.train, self.validation = self._splits["train"], self._splits["validation"]
        self.test = self._splits.get("test")
        self.notices = (
            *(() if task is not None else label_notices(all_labels, spec.task, spec.ignored)),
            *(void_notices(all_labels, spec.ignored) if ignore_index is None and spec.has_class_maps else ()),
            *(() if is_renumbered(splits["train"]) else order_notices(self.classes, names["train"])),
            *split_notices(self._splits, all_labels.get("train")),
            *draw_notices(self._splits["train"], self.draws),
            *evaluation_notices(self._splits),
        )
        self._train_digest: str | None = None

    def __repr__(self) -> str:
        splits = ", ".join(f"{name}: {split}" for name, split in self._splits.items())
        classes = f"{describe_count(len(self.classes), 'class', 'classes')} ({describe_names(self.classes)})"
        return f"{type(self).__name__}({self.task}, {classes}, {splits})"

    @property
    def summary(self) -> str:
        """A text about how much of the validation and test streams is read."""
        lines = []
        for name, split in self._splits.items():
            if name == "train" or not isinstance(split, CheckedLoaderSplit):
                continue
            if split.samples is not None:
                lines.append(f"{split.samples:,} samples of the {name} data are read")
            elif length_of(split) is None:
                lines.append(
                    f"the {name} data, a stream without a length, is read to its end; if it has no end, pass the "
                    "number of samples to read: TorchData(..., evaluation_samples=N)"
                )
        return "\n".join(lines)

    @property
    def fingerprint(self) -> str:
        """A digest of the sizes, the classes, and, if samples do not change, the first and last ones.

        Reading all samples could take hours.
        """
        digest = hashlib.sha256()
        for name, split in self._splits.items():
            digest.update(f"{name}:{length_of(split)}:{self.classes}".encode())
            options = {
                "unknown": self._unknown,
                "labels": split.keys.labels,
                "weights": split.keys.weights,
                "samples": split.samples if isinstance(split, CheckedLoaderSplit) else None,
                "ignore_index": self._ignore_index,
            }
            for option, value in options.items():
                if value is not None:
                    digest.update(f"{option}={value}".encode())
            # Other samples may change whenever they are read.
            if not isinstance(split, LoaderSplit) and (self._has_stated_draws or is_fixed(split)):
                rows = torch.tensor([0, len(split) - 1])
                try:
                    batches = [split.batch(rows, 0)]
                except DataError:  # samples of different shapes, for batches of one
                    batches = [split.batch(row, 0) for row in torch.split(rows, 1)]
                for batch in batches:
                    for content in content_of((batch.inputs, batch.labels, batch.weights)):
                        digest.update(content)
        if not isinstance(self.train, LoaderSplit) and self.train.lengths is not None:
            for content in content_of(self.train.lengths):
                digest.update(content)
        if self.batch_transform is not None:
            digest.update(f"batch_transform={_describe_transform(self.batch_transform)}".encode())
        return digest.hexdigest()

    @property
    def train_digest(self) -> str | None:
        """A digest of all training samples as they are now; None if they are not all in memory.

        It may be set to a text that changes whenever any sample changes, such as "images of 2026-05, cropped to 224",
        so that runs share cached teacher outputs.
        """
        if self._train_digest is not None:
            return self._train_digest
        split = self.train
        if not isinstance(split, DatasetSplit) or not is_fixed(split):
            return None
        digest = hashlib.sha256()
        for rows in torch.split(torch.arange(len(split)), 1024):  # a copy of 1024 samples at a time
            batch = split.batch(rows, 0)
            for content in content_of((batch.inputs, batch.labels)):
                digest.update(content)
        return digest.hexdigest()

    @train_digest.setter
    def train_digest(self, digest: str) -> None:
        if not isinstance(digest, str) or not digest:
            raise DataError(f"train_digest must be a text that changes with any training sample; got {digest!r}")
        self._train_digest = digest


def _require_options(
    task: Any, classes: Any, draws: Any, unknown: Any, ignore_index: Any, evaluation_samples: Any
) -> None:
    """Raise DataError if an option of `TorchData` is invalid for any data."""
    if task is not None and task not in get_args(Task):
        raise DataError(f"task must be {', '.join(map(repr, get_args(Task)))} or None; got {task!r}")
    if isinstance(classes, str):  # a str is a sequence of letters
        raise DataError(f"classes must be a list of names; got the text {classes!r}; pass [{classes!r}] or list(...)")
    is_count = isinstance(classes, int) and not isinstance(classes, bool)
    is_list = isinstance(classes, Sequence) and all(isinstance(name, str) for name in classes)  # a set has no order
    if classes is not None and (not (is_count or is_list) or not classes or (is_count and classes < 0)):
        raise DataError(
            "classes must be a list of names, or the number of classes, such as classes=10; got "
            f"{shortened(classes, 80)}"
        )
    if draws is not None and not (is_whole_number(draws) and draws > 0):
        raise DataError(
            "draws must be 1, for samples that never change, the number of versions of randomly augmented samples, or "
            f"None; got {draws!r}"
        )
    if isinstance(unknown, bool) or (unknown in (0, 1) and task != "regression"):
        raise DataError(
            f"unknown must be a label other than 0 and 1, such as -1 or float('nan'); got {unknown!r}; if labels are "
            "numbers, such as depths of which 0 is none, pass task='regression' too"
        )
    if ignore_index is not None and not is_whole_number(ignore_index):
        raise DataError(f"ignore_index must be a class index that means no label, such as 255; got {ignore_index!r}")
    if evaluation_samples is not None and not (is_whole_number(evaluation_samples) and evaluation_samples > 0):
        raise DataError(f"evaluation_samples must be a number of samples, at least 1; got {evaluation_samples!r}")


def _require_functions(*, collate_fn: Any, batch_transform: Any) -> None:
    """Raise DataError if an option of `TorchData` is not a function."""
    if collate_fn is not None and not callable(collate_fn):
        raise DataError(f"collate_fn must be a function that makes a batch of a list of samples; got {collate_fn!r}")
    if batch_transform is not None and not callable(batch_transform):
        raise DataError(f"batch_transform must be a function of inputs and labels; got {batch_transform!r}")


def _as_splits(
    datasets: Mapping[str, DatasetOrLoader],
    keys: SampleKeys,
    evaluation_samples: int | None,
    collate_fn: Collate | None,
) -> dict[str, TorchSplit]:
    """Return data as splits, whose sample ids are unique over all splits.

    evaluation_samples: how many samples of the validation and test streams are read. collate_fn: of Datasets and
    streams.
    """
    splits: dict[str, TorchSplit] = {}
    first_id = 0
    for name, data in datasets.items():
        samples = None if name == "train" else evaluation_samples
        splits[name] = as_split(name, data, keys, first_id=first_id, samples=samples, collate_fn=collate_fn)
        first_id += length_of(splits[name]) or 0
    if collate_fn is not None and not any(isinstance(split, DatasetSplit | StreamSplit) for split in splits.values()):
        raise DataError(
            "collate_fn is for Datasets and streams, but all data is in DataLoaders, which have their own: pass "
            "DataLoader(..., collate_fn=...)"
        )
    evaluated = [split for name, split in splits.items() if name != "train"]
    if evaluation_samples is not None and not any(isinstance(split, LoaderSplit) for split in evaluated):
        raise DataError(
            "evaluation_samples is for a validation or test stream or DataLoader, but there is none; select a part "
            "of a Dataset with torch.utils.data.Subset"
        )
    return splits


def _with_lengths(split: TorchSplit, lengths: Any) -> TorchSplit:
    """Return a split whose training batches have samples of about the same length."""
    if isinstance(split, LoaderSplit):
        raise DataError(
            "lengths are for a training Dataset, but this is a DataLoader or a stream, which has its own order; group "
            "samples there, such as by DataLoader(batch_sampler=...), or pass the Dataset and its collate_fn"
        )
    return replace(split, lengths=require_lengths(lengths, len(split)))


def _with_sampler(split: TorchSplit, sampler: Any) -> TorchSplit:
    """Return a split whose training rows are drawn by a sampler."""
    require_sampler(sampler, split)
    return replace(split, sampler=sampler) if isinstance(split, DatasetSplit) else split


def _draws_of(train: TorchSplit, draws: int | None) -> int | None:
    """Return the number of draws of the training data; None if its samples may change whenever they are read."""
    if isinstance(train, LoaderSplit):
        return None
    if draws is not None and draws > 1 and is_fixed(train):
        raise DataError(f"draws={draws} is for random augmentations, but samples in tensors never change; leave it out")
    return draws or (1 if is_fixed(train) else None)


def _with_targets(split: TorchSplit, spec: LabelSpec, labels: SplitLabels | None, *, is_drawn: bool) -> TorchSplit:
    """Return a split whose batches have labels in the form that losses take, after a check of its visible labels.

    Other labels are checked batch by batch, and so are those of user-defined datasets, which may remap their `targets`.
    """
    check = LabelCheck(split.name, spec.task, spec.classes, spec.unknown is not None, spec.ignored)
    if labels is not None and labels.is_complete:
        check_visible(split, labels.rows, check)
    all_checked = labels is None or (labels.is_complete and is_fixed(split))
    label_check = None if all_checked else check
    if isinstance(split, LoaderSplit):
        return replace(split, targets=spec.targets, label_check=label_check)
    # Labels per position are left out: as int64, masks would take eight times the memory.
    visible = visible_labels(split) if labels is not None and all_checked and not spec.position_dims else None
    targets = None if visible is None else spec.targets(visible)
    return replace(split, targets=spec.targets, label_check=label_check, labels=targets, is_drawn=is_drawn)


def _describe_transform(transform: Any) -> str:
    """Return a function or an object as text, with its options, such as the alpha of mixup."""
    options = {
        name: value
        for name, value in getattr(transform, "__dict__", {}).items()
        if isinstance(value, bool | int | float | str | tuple) and not name.startswith("_")
    }
    return f"{with_names(repr(transform))} {sorted(options.items())}"
