"""What data shows of its labels without reading all samples: some or all labels, and the names of the classes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset, default_collate

from kdkit.data.batch import SIGNED, Batch
from kdkit.data.label_check import LabelCheck
from kdkit.data.label_forms import SplitLabels
from kdkit.data.labels import is_ignored, mark_unknown
from kdkit.data.samples import SampleKeys
from kdkit.data.torch_splits import (
    DatasetOrLoader,
    DatasetSplit,
    TorchSplit,
    dataset_of,
    first_batch,
    is_fixed,
    is_plain,
    tensors_of,
)
from kdkit.errors import DataError
from kdkit.utils.randomness import preserve_rng_state

_ROWS = 4096  # the number of visible labels that are checked at a time
_SAMPLES = 32  # the number of samples that are read to find out the form of labels by class


def read_labels(split: TorchSplit, unknown: float | None, first: Batch | None) -> SplitLabels:
    """Return all labels of a split if they are visible, otherwise the labels of its first batch or of some samples.

    unknown: the label that means unknown. first: the first batch, if it was already read.
    Raises DataError if they are complex numbers.
    """
    rows, is_complete = _read_rows(split, first)
    if rows.is_complex():
        raise DataError(
            f"the labels of the {split.name} data are {str(rows.dtype).removeprefix('torch.')}, but metrics take real "
            "numbers: pass torch.view_as_real(labels), (samples, ..., 2), and for the outputs of networks, "
            "Net(..., element=torch.view_as_real)"
        )
    if rows.dtype in SIGNED:
        rows = rows.long()  # torch can convert wide unsigned integers, but not compare them
    if unknown is not None:
        marked = mark_unknown(rows, unknown)
        rows = torch.where(marked.isnan(), 0, marked)
    return SplitLabels(split.name, rows, is_complete, type(dataset_of(split)).__name__)


def _read_rows(split: TorchSplit, first: Batch | None) -> tuple[Tensor, bool]:
    """Return labels, (samples, ...), and whether these are all of them."""
    visible = visible_labels(split)
    if visible is not None and is_fixed(split) and first is None:
        return visible, True
    if first is None:
        with preserve_rng_state(cuda=False):
            first = first_batch(split)
    if visible is not None and _is_like(visible, first.labels, split):
        return visible, True
    if isinstance(split, DatasetSplit) and first.labels.ndim == 2 and len(split) > 1:
        # A single row of zeros and ones may be a soft label, so samples from the whole split are read.
        rows = torch.linspace(0, len(split) - 1, min(_SAMPLES, len(split))).long()
        with preserve_rng_state(cuda=False):
            return split.read(rows)[1], False
    return first.labels, False


def _is_like(visible: Tensor, first: Tensor, split: TorchSplit) -> bool:
    """Return whether the visible labels are like those that a split yields, judged by its first sample or batch.

    Class indices may differ, because a dataset may remap its `targets`; `check_visible` reads the relevant samples.
    """
    if visible.shape[1:] != first.shape[1:] or visible.is_floating_point() != first.is_floating_point():
        return False
    if is_fixed(split) or (visible.ndim == 1 and not visible.is_floating_point()):
        return True
    return isinstance(split, DatasetSplit) and torch.equal(visible[: len(first)].to(first), first)


def visible_labels(split: TorchSplit) -> Tensor | None:
    """Return the labels, (samples, ...), if they are visible without reading samples, otherwise None."""
    is_collated = (
        split.has_own_collate if isinstance(split, DatasetSplit) else split.loader.collate_fn is not default_collate
    )
    # The user's collate_fn may change the labels of the dataset.
    return None if is_collated else _labels_of(dataset_of(split), split.keys)


def _labels_of(dataset: Any, keys: SampleKeys) -> Tensor | None:
    if is_plain(dataset, Subset):
        labels = _labels_of(dataset.dataset, keys)
        return None if labels is None else labels[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, IterableDataset):
        return None  # its samples may come in any order
    if is_plain(dataset, TensorDataset):
        targets = dataset.tensors[1] if len(dataset.tensors) in (2, 3) else None  # the third tensor has weights
    elif (tensors := tensors_of(dataset)) is not None:
        _, targets, _ = keys.split(tensors)
    else:
        targets = getattr(dataset, "targets", None)  # the convention of torchvision's datasets
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        labels = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):  # user-defined `targets` may be anything, such as names or boxes
        return None
    return labels if labels.ndim and len(labels) else None


def check_visible(split: TorchSplit, labels: Tensor, check: LabelCheck) -> None:
    """Raise DataError if a visible label is invalid."""
    if labels.ndim > 1 or labels.is_floating_point():
        for rows in torch.split(torch.arange(len(labels)), _ROWS):
            check(labels[rows].cpu(), rows)
        return
    if check.task != "multiclass":
        return
    labels = torch.where(is_ignored(labels, check.ignored), 0, labels)
    for row in (int(labels.argmin()), int(labels.argmax())):
        if not 0 <= labels[row] < len(check.classes):
            # A dataset may remap its `targets`, so the yielded label counts.
            _, label, _ = split.keys.split(dataset_of(split)[row], split.must_yield)
            if not 0 <= int(label) < len(check.classes):
                raise DataError(check.explain_index(int(label), f"row {row}"))


def class_names(data: DatasetOrLoader | TorchSplit) -> tuple[str, ...] | None:
    """Return the `classes` of the dataset inside any Subset and DataLoader; None if it has no class names."""
    dataset = _innermost(data)
    names = getattr(dataset, "classes", None)
    if names is None:  # one of the features of a Hugging Face dataset may be a ClassLabel
        features = getattr(dataset, "features", None)
        described = features.values() if isinstance(features, Mapping) else ()  # other datasets keep inputs there
        labels = [names for names in (getattr(feature, "names", None) for feature in described) if names]
        names = labels[0] if len(labels) == 1 else None
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def is_renumbered(data: DatasetOrLoader | TorchSplit) -> bool:
    """Return whether a function of the dataset inside any Subset and DataLoader may change its labels."""
    return getattr(_innermost(data), "target_transform", None) is not None


def _innermost(data: DatasetOrLoader | TorchSplit) -> Any:
    dataset = dataset_of(data)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset
