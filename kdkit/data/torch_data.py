"""The data of an experiment from any torch Dataset or DataLoader that yields `(inputs, labels)`."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from kdkit.data.batch import Batch, as_targets
from kdkit.data.dataset import Data, LoaderSplit, Split, Task
from kdkit.data.label_check import LabelCheck
from kdkit.data.labels import (
    SplitLabels,
    ignored_labels,
    is_ignored,
    mark_unknown,
    position_dims,
    require_form,
    task_of,
)
from kdkit.data.loading import length_of
from kdkit.data.notices import draw_notices, label_notices, split_notices
from kdkit.data.samples import SampleKeys
from kdkit.data.torch_splits import (
    CheckedLoaderSplit,
    DatasetOrLoader,
    DatasetSplit,
    as_split,
    content_of,
    dataset_of,
    first_batch,
    is_plain,
    visible_labels,
)
from kdkit.errors import DataError, shortened
from kdkit.utils.devices import default_modes
from kdkit.utils.randomness import preserve_rng_state
from kdkit.utils.reprs import describe_count, describe_names
from kdkit.utils.validation import is_whole_number

_ROWS = 4096  # the number of visible labels that are checked at a time
_SAMPLES = 32  # the number of samples that are read to find out the form of labels by class


class TorchData(Data):
    """The data of an experiment from torch Datasets or DataLoaders that yield `(inputs, labels)`.

    Samples and batches may also be triples with the weight of each sample, a float that kdkit.losses.SampleWeighted
    uses, or mappings. The inputs of a mapping are everything except labels and weights: the value if there is one, or a
    mapping of several values, which networks get as keyword arguments.
    Inputs keep their dtype: convert float64 numpy arrays to float32 for a float32 network.
    Labels are class indices per sample, or per pixel or token, (samples, *positions), or soft labels by class whose
    rows sum to 1 (multiclass), 0 and 1 by class (multilabel), or other floats (regression). For metrics, the class of a
    soft label is the one with the largest value.

    train: the data that the networks are trained on; Unlabelled(dataset) if it has no labels. validation: the data on
    which the best epoch and the thresholds are chosen. test: the data on which metrics are reported; None to report
    them on `validation`.
    classes: the names of the classes, or their number, and then the names are numbers. If None, the `classes` attribute
    of the dataset, as ImageFolder has it, or numbers up to the largest label if all labels are visible.
    task: the kind of the labels. If None, it is derived from all visible labels of all splits, or from the first batch
    or some samples if the labels are not visible.
    unknown: the value that means unknown in labels by class (multilabel), such as -1 or NaN. In a batch, such labels
    are NaN. Metrics leave them out, and so does a loss in kdkit.losses.IgnoreUnknown.
    ignore_index: the class index that means no label, for a position or a sample. Metrics leave it out, and so do
    kdkit's losses that compare positions or take labels; pass it to losses of torch too. If None, it is -100 for labels
    per position, and also 255 if there are fewer classes.
    draws: the number of versions of a training sample. 1 means that samples never change. A larger number is for random
    augmentations, which are then seeded by the row and the number of the version; epochs use the versions in turn, and
    teacher outputs are cached. None, the default except for a TensorDataset, means that a sample may change each time
    it is read.
    labels: the key of the labels in samples that are mappings; None for the one of "label", "labels", "target",
    "targets" and "y" that they have. For batches that are other objects, such as graphs, an attribute; the inputs are
    then the object. weights: the key or the attribute of the weights.
    batch_transform: a function of inputs and labels that returns both, applied to each training batch on the training
    device, such as torchvision's MixUp or timm's Mixup. Teachers and students get the same batch. Because samples may
    be mixed, the batch has no sample ids, and teacher outputs are not cached.
    evaluation_samples: how many samples of a validation or test stream are read, so that the stream may be endless. A
    DataLoader is read to the end of the batch with the last of them. None reads streams and DataLoaders to their ends.

    A DataLoader keeps its own order, batch size and randomness, and its samples have no ids. An IterableDataset is read
    in batches of the stage's batch size; without a length, it needs Training(steps_per_epoch=...).
    Raises DataError if a split is empty or has another form, or if the labels of several splits are inconsistent.
    Labels that are beyond the classes or outside [0, 1] are refused before training if they are visible without reading
    every sample (TensorDataset, an attribute `targets`, and a Subset of these), otherwise when their batch is read.
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
        labels: str | None = None,
        weights: str | None = None,
        batch_transform: Callable[[Any, Tensor], tuple[Any, Tensor]] | None = None,
        evaluation_samples: int | None = None,
    ) -> None:
        if task is not None and task not in get_args(Task):
            raise DataError(f"task must be {', '.join(map(repr, get_args(Task)))} or None; got {task!r}")
        _require_options(classes, draws, unknown, ignore_index, batch_transform)
        for name, key in (("labels", labels), ("weights", weights)):
            if not isinstance(key, str | None):
                raise DataError(
                    f"{name} must be a key of samples that are mappings, or an attribute of other objects; got a "
                    f"{type(key).__name__}"
                )
        datasets = {"train": train, "validation": validation}
        if test is not None:
            datasets["test"] = test
        self._splits: dict[str, DatasetSplit | CheckedLoaderSplit] = {}
        first_id = 0  # ids are unique over all splits
        for name, dataset in datasets.items():
            self._splits[name] = split = as_split(name, dataset, first_id, SampleKeys(labels, weights))
            first_id += length_of(split) or 0
        self._limit_evaluation(evaluation_samples)
        all_fixed = all(_is_fixed(dataset_of(dataset)) for dataset in datasets.values())
        has_loader = any(isinstance(split, LoaderSplit) for split in self._splits.values())
        is_fixed = all_fixed and not has_loader
        self.draws = None if isinstance(self._splits["train"], LoaderSplit) else draws or (1 if is_fixed else None)
        # Read without restoring random states: for a given seed, runs depend on the random numbers that are drawn here.
        first = first_batch("train", self._splits["train"])
        self.has_weights = first.weights is not None
        self.has_labels = not self._splits["train"].keys.inputs_only
        self.batch_transform = batch_transform
        if batch_transform is not None and self.has_weights:
            raise DataError("batch_transform may mix samples, but not their weights; leave out one of them")
        all_labels = {
            name: _read_labels(split, first if name == "train" else None)
            for name, split in self._splits.items()
            if name != "train" or self.has_labels
        }
        if unknown is not None:
            for name, split_labels in all_labels.items():  # with 0 for unknown labels, so that the form is recognized
                marked = mark_unknown(split_labels.rows, unknown)
                all_labels[name] = replace(split_labels, rows=torch.where(marked.isnan(), 0, marked))
        self.task: Task = task or task_of([*all_labels.values()])
        require_form([*all_labels.values()], self.task)
        self.position_dims = position_dims([*all_labels.values()], self.task)
        if self.position_dims and not self.has_labels:
            raise DataError(
                "the labels of this data are per position, and losses use them to select positions, so training "
                "samples need them too; if none is known, fill them with the ignore_index, and match a teacher with "
                "PerPosition(loss, ignore_index=None), which compares all positions"
            )
        self._has_class_maps = self.task == "multiclass" and self.position_dims > 0
        if unknown is not None and self.task != "multilabel":
            raise DataError(
                f"unknown={unknown!r} is for labels by class (multilabel), but the task of this data is {self.task}; "
                "drop samples whose labels are not known"
            )
        self.has_unknown = unknown is not None
        self._ignore_index = ignore_index
        self._train_digest: str | None = None
        if classes is None:
            classes = self._default_classes(all_labels)
        self.classes = _numbers(classes) if isinstance(classes, int) else tuple(classes)
        self.ignored_labels = self._ignored(len(self.classes))
        self._require_columns(all_labels)
        notices = [] if task is not None else label_notices(all_labels, self.task, self.ignored_labels)
        self.notices = (*notices, *split_notices(self._splits, all_labels.get("train")))
        if self.draws is not None and isinstance(self._splits["train"], DatasetSplit):
            self._splits["train"].is_drawn = self.draws > 1
            if not _is_fixed(dataset_of(train)):
                self.notices += tuple(draw_notices(self._splits["train"]))
            elif self.draws > 1:
                raise DataError(
                    f"draws={self.draws} is for random augmentations, but samples of a TensorDataset never change; "
                    "leave it out"
                )
        for name, split in self._splits.items():
            split.unknown, split.per_position = unknown, self._has_class_maps
            if name in all_labels:
                self._check_labels(split, all_labels[name])

    def __repr__(self) -> str:
        splits = ", ".join(f"{name}: {split}" for name, split in self._splits.items())
        classes = f"{describe_count(len(self.classes), 'class', 'classes')} ({describe_names(self.classes)})"
        return f"{type(self).__name__}({self.task}, {classes}, {splits})"

    @property
    def train(self) -> Split | LoaderSplit:
        """The split that the networks are trained on."""
        return self._splits["train"]

    @property
    def validation(self) -> Split | LoaderSplit:
        """The split on which the best epoch and the thresholds are chosen."""
        return self._splits["validation"]

    @property
    def test(self) -> Split | LoaderSplit | None:
        """The split on which metrics are reported; None to report them on `validation`."""
        return self._splits.get("test")

    @property
    def summary(self) -> str:
        """A text about how much of the validation and test streams is read."""
        return "\n".join(
            f"the {name} data, a stream without a length, is read to its end; if it has no end, pass the number of "
            "samples to read: TorchData(..., evaluation_samples=N)"
            if split.samples is None
            else f"{split.samples:,} samples of the {name} data are read"
            for name, split in self._evaluated_loaders()
            if split.samples is not None or length_of(split) is None
        )

    @property
    def fingerprint(self) -> str:
        """A digest of the sizes, the classes, and the first and last samples. Reading all samples could take hours."""
        digest = hashlib.sha256()
        for name, split in self._splits.items():
            digest.update(f"{name}:{length_of(split)}:{self.classes}".encode())
            options = {"unknown": split.unknown, "labels": split.keys.labels, "weights": split.keys.weights}
            if isinstance(split, CheckedLoaderSplit):
                options["samples"] = split.samples
            for option, value in {**options, "ignore_index": self._ignore_index}.items():
                if value is not None:
                    digest.update(f"{option}={value}".encode())
            if not isinstance(split, LoaderSplit) and self.draws is not None:
                batch = split.batch(torch.tensor([0, len(split) - 1]), 0)
                for content in content_of((batch.inputs, batch.labels, batch.weights)):
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
        if not isinstance(split, DatasetSplit) or not _is_fixed(split.dataset):
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

    def _evaluated_loaders(self) -> Iterator[tuple[str, CheckedLoaderSplit]]:
        for name, split in self._splits.items():
            if name != "train" and isinstance(split, CheckedLoaderSplit):
                yield name, split

    def _limit_evaluation(self, samples: int | None) -> None:
        """Set how many samples of the validation and test streams are read."""
        if samples is None:
            return
        if not is_whole_number(samples) or samples < 1:
            raise DataError(f"evaluation_samples must be a number of samples, at least 1; got {samples!r}")
        loaders = [split for _, split in self._evaluated_loaders()]
        if not loaders:
            raise DataError(
                "evaluation_samples is for a validation or test stream or DataLoader, but there is none; select a part "
                "of a Dataset with torch.utils.data.Subset"
            )
        for split in loaders:
            split.samples = samples

    def _check_labels(self, split: DatasetSplit | CheckedLoaderSplit, labels: SplitLabels) -> None:
        """Check the visible labels of a split. Other labels are checked batch by batch.

        So are the labels of user-defined datasets, which may differ from their `targets`.
        """
        label_check = LabelCheck(split.name, self.task, self.classes, self.has_unknown, self.ignored_labels)
        is_fixed = _is_fixed(dataset_of(split))
        if labels.is_complete:
            _check_visible(split, labels.rows, label_check)
            # Other datasets may remap their `targets`, and a loader may leave out samples.
            visible = visible_labels(split) if is_fixed else None
            # `labels` is not set for labels per position: as int64, masks would take eight times the memory.
            if isinstance(split, DatasetSplit) and visible is not None and not self.position_dims:
                split.labels = as_targets(visible) if split.unknown is None else mark_unknown(visible, split.unknown)
        if not (labels.is_complete and is_fixed):
            split.label_check = label_check

    def _default_classes(self, labels: Mapping[str, SplitLabels]) -> tuple[str, ...]:
        """Return the class names of the datasets, or numbers, by label columns or up to the largest label."""
        # Class indices in one split are consistent with soft labels in another, which have one column per class.
        columns = 1 if self._has_class_maps else max(split.columns for split in labels.values())
        all_names = {name: class_names(split) for name, split in self._splits.items()}
        names = {name: classes for name, classes in all_names.items() if classes is not None}
        # The names of a single label column are not used: there may be two, such as absent and present.
        if "train" in names and (self.task == "multiclass" or len(names["train"]) == columns != 1):
            for name, classes in names.items():
                if classes != names["train"]:
                    raise DataError(
                        f"the classes of the train data are {', '.join(names['train'])}, but those of the {name} data "
                        f"are {', '.join(classes)}, so the same label would have two meanings"
                    )
            return names["train"]
        if self.task != "multiclass" or columns > 1:
            return _numbers(columns)
        for name, split_labels in labels.items():
            if not split_labels.is_complete:
                raise DataError(
                    f"the number of classes of the {name} data is unknown without reading all labels of the "
                    f"{type(dataset_of(self._splits[name])).__name__}; pass the number or the names: "
                    "TorchData(..., classes=10)"
                )
        # Without class names, 255 is taken to mean no label: data with so many classes has class names.
        ignored = self._ignored(0)
        largest = max(
            int(torch.where(is_ignored(split.rows, ignored), 0, split.rows).max()) for split in labels.values()
        )
        return _numbers(largest + 1)

    def _ignored(self, classes: int) -> tuple[int, ...]:
        """Return the class indices that mean no label, for this number of classes."""
        return ignored_labels(self._ignore_index, classes, self.task, has_positions=self._has_class_maps)

    def _require_columns(self, labels: Mapping[str, SplitLabels]) -> None:
        """Raise DataError if the number of label columns is not the number of classes."""
        for split in labels.values():
            if self.task == "regression" or self._has_class_maps or split.rows.ndim == 1:
                continue
            if split.columns != len(self.classes):
                advice = ", or class indices of shape (samples,): labels.squeeze(1)" if split.columns == 1 else ""
                if split.columns > 1 and split.may_have_positions:
                    advice = "; if they are classes of positions, such as tokens, pass task='multiclass'"
                raise DataError(
                    f"the labels of the {split.split} data are {split.description}, but there are {len(self.classes)} "
                    f"classes; expected one column per class, and a network with as many outputs{advice}"
                )


def _require_options(classes: Any, draws: int | None, unknown: Any, ignore_index: Any, batch_transform: Any) -> None:
    """Raise DataError if an option of `TorchData` is invalid for any data."""
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
    if unknown is not None and (isinstance(unknown, bool) or unknown in (0, 1)):
        raise DataError(f"unknown must be a label other than 0 and 1, such as -1 or float('nan'); got {unknown!r}")
    if ignore_index is not None and not is_whole_number(ignore_index):
        raise DataError(f"ignore_index must be a class index that means no label, such as 255; got {ignore_index!r}")
    if batch_transform is not None and not callable(batch_transform):
        raise DataError(f"batch_transform must be a function of inputs and labels; got {batch_transform!r}")


def _numbers(count: int) -> tuple[str, ...]:
    """Return numbers as the names of unnamed classes."""
    return tuple(str(index) for index in range(count))


def class_names(data: DatasetOrLoader | Split | LoaderSplit) -> tuple[str, ...] | None:
    """Return the `classes` of the dataset inside any Subset and DataLoader; None if it has no class names."""
    dataset = dataset_of(data)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if names is None:  # one of the features of a Hugging Face dataset may be a ClassLabel
        features = getattr(dataset, "features", None)
        described = features.values() if isinstance(features, Mapping) else ()  # other datasets keep inputs there
        labels = [names for names in (getattr(feature, "names", None) for feature in described) if names]
        names = labels[0] if len(labels) == 1 else None
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _read_labels(split: DatasetSplit | CheckedLoaderSplit, first: Batch | None) -> SplitLabels:
    """Return all labels of a split if they are visible, otherwise the labels of its first batch or of some samples.

    first: the first batch, if it was already read.
    """
    visible = visible_labels(split)
    if visible is not None and _is_fixed(dataset_of(split)) and split.name != "train":
        return SplitLabels(split.name, visible, is_complete=True)
    if first is None:
        with preserve_rng_state(cuda=False):
            first = first_batch(split.name, split)
    labels = first.labels
    if visible is not None and _is_like(visible, labels, split):
        return SplitLabels(split.name, visible, is_complete=True)
    if isinstance(split, DatasetSplit) and labels.ndim == 2 and len(split) > 1:
        # A single row of zeros and ones may be a soft label, so samples from the whole split are read.
        rows = torch.linspace(0, len(split) - 1, min(_SAMPLES, len(split))).long()
        with preserve_rng_state(cuda=False):
            labels = split.read(rows)[1]
    return SplitLabels(split.name, labels, is_complete=False)


def _is_like(visible: Tensor, first: Tensor, split: DatasetSplit | CheckedLoaderSplit) -> bool:
    """Return whether the visible labels are like those that a split yields, judged by its first sample or batch.

    Class indices may differ, because a dataset may remap its `targets`; `_check_visible` reads the relevant samples.
    """
    if visible.shape[1:] != first.shape[1:] or visible.is_floating_point() != first.is_floating_point():
        return False
    if _is_fixed(dataset_of(split)) or (visible.ndim == 1 and not visible.is_floating_point()):
        return True
    return isinstance(split, DatasetSplit) and torch.equal(visible[: len(first)].to(first), first)


def _check_visible(split: DatasetSplit | CheckedLoaderSplit, labels: Tensor, label_check: LabelCheck) -> None:
    """Raise DataError if a visible label is invalid."""
    if labels.ndim > 1 or labels.is_floating_point():
        for rows in torch.split(torch.arange(len(labels)), _ROWS):
            label_check(labels[rows].cpu(), rows)
        return
    if label_check.task != "multiclass":
        return
    labels = torch.where(is_ignored(labels, label_check.ignored), 0, labels)
    for row in (int(labels.argmin()), int(labels.argmax())):
        if not 0 <= labels[row] < len(label_check.classes):
            # A dataset may remap its `targets`, so the yielded label counts.
            _, label, _ = split.keys.split(dataset_of(split)[row], split.source)
            if not 0 <= int(label) < len(label_check.classes):
                raise DataError(label_check.explain_index(int(label), f"row {row}"))


def _is_fixed(dataset: object) -> bool:
    """Return whether samples are known to never change: in a TensorDataset, or a Subset of one."""
    while is_plain(dataset, Subset):
        dataset = dataset.dataset
    return is_plain(dataset, TensorDataset)


def _describe_transform(transform: Any) -> str:
    """Return the name of a function, or of a class with its options, such as the alpha of mixup."""
    options = {
        name: value
        for name, value in getattr(transform, "__dict__", {}).items()
        if isinstance(value, bool | int | float | str | tuple) and not name.startswith("_")
    }
    return f"{getattr(transform, '__qualname__', type(transform).__qualname__)} {sorted(options.items())}"
