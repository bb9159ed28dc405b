"""Notices about the data of a TorchData: properties that are valid but rarely intended."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch.utils.data import BatchSampler, SequentialSampler, Subset

from kdkit.data.batch import is_dense, nested_tensors
from kdkit.data.dataset import LoaderSplit, Task
from kdkit.data.label_forms import SplitLabels
from kdkit.data.labels import without_ignored
from kdkit.data.reading import samples_change
from kdkit.data.torch_splits import TorchSplit, dataset_of, is_fixed, is_plain, tensors_of

_FIRST = 32  # masks whose values are searched
_RARE = 0.01  # a probability below which something is not taken for chance
_FEW = 8  # with fewer samples, the classes may be a matter of chance


def label_notices(labels: Mapping[str, SplitLabels], task: Task, ignored: tuple[int, ...]) -> Iterator[str]:
    """Yield notices about labels from which the task was derived."""
    samples = sum(len(split.rows) for split in labels.values())
    are_bits = all(split.rows.ndim == 1 and bool((split.rows == split.rows.bool()).all()) for split in labels.values())
    if task == "regression" and are_bits and samples >= _FEW:
        yield (
            "the labels, 0 and 1 as floats of shape (samples,), are taken for numbers (regression); if they are "
            "classes, make them labels[:, None] for one output, or integers for two"
        )
    is_one_hot = all(split.columns > 1 and split.is_one_hot for split in labels.values())
    if task == "multilabel" and is_one_hot and samples >= _FEW:
        yield (
            "each sample has exactly one class, and the labels, 0 and 1 by class, are taken for multilabel; if classes "
            "exclude each other, pass TorchData(..., task='multiclass')"
        )
    of_positions = [split.rows[:_FIRST] for split in labels.values() if split.rows.ndim > 2 and split.columns > 1]
    if task == "multilabel" and of_positions and all(bool((rows.sum(1) == 1).all()) for rows in of_positions):
        yield (
            "each position has exactly one class, and the labels, 0 and 1 by class, are taken for multilabel, so "
            "metrics count each output of at least 0; if classes exclude each other, pass class indices: "
            "labels.argmax(1)"
        )
    if task == "multiclass" and all(split.is_complete and split.form == "indices" for split in labels.values()):
        of_classes = torch.cat([without_ignored(split.rows.cpu(), ignored) for split in labels.values()])
        least, most = map(int, of_classes.aminmax()) if len(of_classes) else (0, 0)
        # Of many classes with few samples, such as items, the first ones may be missing by chance.
        if least > 0 and (1 - least / (most + 1)) ** len(of_classes) < _RARE:
            yield (
                f"no label is below {least}, and classes are numbered from 0: if those of the data are numbered from "
                f"{least}, subtract {least} from the labels"
            )


def void_notices(labels: Mapping[str, SplitLabels], ignored: tuple[int, ...]) -> Iterator[str]:
    """Yield a notice if 255 means no label by default, but masks of two values seem to use it as their second class."""
    first = [split.rows[:_FIRST] for split in labels.values()]
    is_void = [rows == 255 for rows in first] if 255 in ignored else []
    if any(map(torch.any, is_void)) and not any(rows[~void].any() for rows, void in zip(first, is_void, strict=True)):
        yield (
            "the labels are 0 and 255, and 255 means no label by default, so only class 0 is learned; if 255 is the "
            "second class, make it 1, such as by (mask > 0).long()"
        )


def order_notices(classes: Sequence[str], names: Sequence[str] | None) -> Iterator[str]:
    """Yield a notice if the classes are those of the training dataset in another order, which renumbers no label.

    names: the classes of the dataset; None if it has no names.
    """
    if names is None or {*names} != {*classes}:
        return
    for label, (name, other) in enumerate(zip(names, classes, strict=False)):
        if name != other:
            yield (
                f"label {label} is {name!r} in the training data, but {other!r} in classes=..., which renumbers no "
                "label; leave out classes, unless the dataset renumbers its labels; for the order of a network, pass "
                "Net(..., classes=...)"
            )
            return


def split_notices(splits: Mapping[str, TorchSplit], labels: SplitLabels | None) -> Iterator[str]:
    """Yield notices about samples that are in two splits, and about the order of a training data loader.

    labels: of the training data; None if it has none.
    """
    contents = {name: _rows_of(dataset_of(split)) for name, split in splits.items()}
    for first, second in combinations(contents, 2):
        (key, rows), (other_key, other_rows) = contents[first], contents[second]
        if key != other_key:
            continue
        if rows is None or other_rows is None:  # one is a Subset of the other, or both are the same
            count = "" if other_rows is None else f"{len(other_rows):,} "
            shared = f"the {count}samples" if rows is None else f"{len(rows):,} of the samples"
        else:
            common = len(rows & other_rows)
            shared = f"{common:,} of the {len(other_rows):,} samples" if common else ""
        if shared:
            yield f"{shared} of the {second} data are in the {first} data too, so metrics on them are too optimistic"
    for name, split in splits.items():
        dropped, total = _dropped(split) if name != "train" and isinstance(split, LoaderSplit) else (0, 0)
        if dropped:
            yield (
                f"the DataLoader of the {name} data drops the last {dropped:,} of {total:,} samples, so metrics leave "
                "them out; pass drop_last=False to it"
            )
    if isinstance(splits["train"], LoaderSplit) and labels is not None and _is_sorted(splits["train"], labels):
        yield (
            "the DataLoader of the training data yields one class after the other, in the same order in each epoch; "
            "pass shuffle=True to it"
        )


def draw_notices(split: TorchSplit, draws: int | None) -> Iterator[str]:
    """Yield a notice if training samples change between two reads, although their number of draws excludes this."""
    if draws is None or isinstance(split, LoaderSplit) or not _changes(split):
        return
    uncached = "so outputs of teachers that see the change are not cached"
    if split.is_drawn:
        collate = "draw random numbers in the dataset, not in the collate_fn; " if split.has_own_collate else ""
        yield (
            "draws=... seeds the random states of Python, NumPy and torch for each sample, but samples of the training "
            f"data still change when they are read again, {uncached}; {collate}if the dataset has its own generator, "
            "such as that of Albumentations, seed it in __getitem__ from these states"
        )
    else:
        yield (
            "draws=1 means that a sample is always the same, but samples of the training data change when they are "
            f"read again, for example by a random augmentation, {uncached}; pass the number of versions per sample, "
            "such as draws=10, or leave it out"
        )


def evaluation_notices(splits: Mapping[str, TorchSplit]) -> Iterator[str]:
    """Yield a notice if validation or test samples change between two reads, as those of augmented training data do."""
    names = [name for name, split in splits.items() if name != "train" and _changes(split)]
    if names:
        yield (
            f"samples of the {' and '.join(names)} data change when they are read again, for example by the random "
            "augmentation of the training data, so metrics depend on chance; give evaluation a dataset without it"
        )


def _changes(split: TorchSplit) -> bool:
    """Whether samples change when they are read again. False for a DataLoader, which is not read here."""
    if isinstance(split, LoaderSplit) or is_fixed(split):
        return False
    return samples_change(lambda rows: split.read(rows)[:2], len(split))


def _rows_of(dataset: Any) -> tuple[object, frozenset[int] | None]:
    """Return a key for the dataset at the root of nested Subsets, and the rows of it that are used; None for all."""
    rows = None
    while is_plain(dataset, Subset):
        indices = list(dataset.indices)
        rows = indices if rows is None else [indices[row] for row in rows]
        dataset = dataset.dataset
    tensors = tensors_of(dataset)
    if tensors is not None:  # two datasets may have the same tensors
        key: object = tuple(
            (tensor.data_ptr(), tensor.shape, tensor.stride()) if is_dense(tensor) else id(tensor)
            for tensor in nested_tensors(tensors)
        )
    else:
        key = id(getattr(dataset, "source", dataset))  # batches that are not from a DataLoader have a source
    return key, None if rows is None else frozenset(map(int, rows))


def _dropped(split: LoaderSplit) -> tuple[int, int]:
    """Return how many samples a DataLoader drops as the rest of its last batch, and how many there are."""
    sampler = split.loader.batch_sampler
    if type(sampler) is not BatchSampler or not sampler.drop_last:
        return 0, 0
    try:
        count = len(sampler.sampler)  # type: ignore[arg-type]  # most samplers have a length
    except TypeError:
        return 0, 0
    return count % sampler.batch_size, count


def _is_sorted(split: LoaderSplit, labels: SplitLabels) -> bool:
    """Whether a loader yields classes in order. Looks at all labels if they are known, or at the first batch."""
    sampler = split.loader.batch_sampler
    # With a user-defined batch sampler, `loader.sampler` is a default that is not used.
    if type(sampler) is not BatchSampler or not isinstance(sampler.sampler, SequentialSampler):
        return False
    rows = labels.rows
    if rows.ndim > 1 or rows.is_floating_point() or len(rows) < _FEW:
        return False
    if not labels.is_complete:
        return bool((rows == rows[0]).all())
    steps = rows.cpu().long().diff()
    return len(rows) > sampler.batch_size and bool(steps.any()) and bool((steps >= 0).all() or (steps <= 0).all())
