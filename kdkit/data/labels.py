"""The description of the labels of a data set: their task, classes, positions, and the values that mean no label."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kdkit.data.batch import as_targets
from kdkit.data.dataset import Task
from kdkit.data.label_forms import SplitLabels, position_dims, require_form, task_of
from kdkit.errors import DataError
from kdkit.utils.reprs import describe_names, first_three

# The default of torch's cross-entropy, and "void" of Pascal VOC and Cityscapes.
_IGNORED = (-100, 255)
_NARROW = (torch.uint8, torch.int8, torch.int16)  # torch would compare uint8 with -100 as 156, and int8 with 255 as -1


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """What the labels of all splits of a TorchData are.

    classes: their names. position_dims: see `Data`. unknown: the label by class, or the number, that means unknown;
    None if all are known. ignored: the class indices that mean no label.
    """

    task: Task
    classes: tuple[str, ...]
    position_dims: int
    unknown: float | None
    ignored: tuple[int, ...]

    @classmethod
    def derive(
        cls,
        labels: Mapping[str, SplitLabels],
        names: Mapping[str, tuple[str, ...] | None],
        *,
        task: Task | None,
        classes: Sequence[str] | int | None,
        unknown: float | None,
        ignore_index: int | None,
    ) -> Self:
        """Return the description of labels, with the options that the user passed to TorchData.

        labels: by split, without a training split that has none. names: the class names that datasets have, by split;
        None for those whose labels may have another order.
        Raises DataError if the labels are inconsistent, or do not fit the options.
        """
        splits = [*labels.values()]
        task = task or task_of(splits)
        require_form(splits, task)
        dims = position_dims(splits, task)
        if dims and "train" not in labels:
            raise DataError(
                "the labels of this data are per position, and losses use them to select positions, so training "
                "samples need them too; if none is known, fill them with the ignore_index, and match a teacher with "
                "PerPosition(loss, ignore_index=None), which compares all positions"
            )
        if unknown is not None and task == "multiclass":
            raise DataError(
                f"unknown={unknown!r} is for labels by class (multilabel) and for numbers (regression), but the task "
                "of this data is multiclass; use a class index that means no label, and pass it as ignore_index=..."
            )
        has_class_maps = task == "multiclass" and dims > 0
        columns = 1 if has_class_maps else max(split.columns for split in splits)
        common_names = _common_names(names, task, columns)
        if classes is None:
            # Without class names, 255 is taken to mean no label: data with so many classes has class names.
            ignored = ignored_labels(ignore_index, 0, task, has_positions=has_class_maps)
            classes = common_names or _number_of_classes(splits, task, columns, ignored)
        classes = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        ignored = ignored_labels(ignore_index, len(classes), task, has_positions=has_class_maps)
        if task != "regression" and not has_class_maps:
            _require_columns(splits, len(classes))
        return cls(task, classes, dims, unknown, ignored)

    @property
    def has_class_maps(self) -> bool:
        """Whether labels are classes of positions, (samples, *positions)."""
        return self.task == "multiclass" and self.position_dims > 0

    def targets(self, labels: Tensor) -> Tensor:
        """Return the labels of a batch in the form that losses take, with NaN for unknown labels."""
        if self.unknown is not None:
            # Whole numbers have no NaN. They are no class indices, which `derive` refuses.
            return mark_unknown(labels if labels.is_floating_point() else labels.float(), self.unknown)
        if self.task == "multilabel" and not labels.is_floating_point():
            return labels.float()  # also of masks by class, (batch, classes, *positions)
        return as_targets(labels, per_position=self.has_class_maps)


def mark_unknown(labels: Tensor, unknown: float) -> Tensor:
    """Return labels in the form that losses take, with NaN for each label that equals `unknown`."""
    labels = as_targets(labels)
    # If `unknown` is NaN, it equals no label, but the labels are NaN already.
    return torch.where(labels == unknown, torch.nan, labels) if labels.is_floating_point() else labels


def is_ignored(labels: Tensor, ignored: Sequence[int]) -> Tensor:
    """Return which labels are ignored, bool of the same shape as the labels."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    limits = torch.iinfo(labels.dtype) if labels.dtype in _NARROW else None
    for label in ignored:  # one or two; torch.isin would copy them to the labels' device
        if limits is None or limits.min <= label <= limits.max:
            mask |= labels == label
    return mask


def ignored_labels(ignore_index: int | None, classes: int, task: Task, *, has_positions: bool) -> tuple[int, ...]:
    """Return the class indices that mean no label. has_positions: whether labels are classes of positions.

    ignore_index: the index that the user passed. If None, the conventional indices that are not classes are returned
    for positions. Raises DataError if the index is one of the classes, or if the task has no class indices.
    """
    if ignore_index is not None and task != "multiclass":
        raise DataError(
            f"ignore_index={ignore_index} is a class index, but the task of this data is {task}; for unknown labels, "
            "pass TorchData(..., unknown=...)"
        )
    if ignore_index is None:
        return tuple(label for label in _IGNORED if label not in range(classes)) if has_positions else ()
    if ignore_index in range(classes):
        raise DataError(
            f"ignore_index={ignore_index} must not be one of the {classes} classes, numbered 0 to {classes - 1}"
        )
    return (ignore_index,)


def without_ignored(labels: Tensor, ignored: Sequence[int]) -> Tensor:
    """Return the labels, (samples,), without ignored ones. Labels with more dimensions are returned unchanged."""
    return labels[~is_ignored(labels, ignored)] if ignored and labels.ndim == 1 else labels


def _common_names(names: Mapping[str, tuple[str, ...] | None], task: Task, columns: int) -> tuple[str, ...] | None:
    """Return the class names of the training data; None if there are none. Raises DataError if a split has others.

    The names of a single label column are not used: there may be two, such as absent and present.
    """
    expected = names["train"]
    if expected is None or (task != "multiclass" and not len(expected) == columns != 1):
        return None
    for name, classes in names.items():
        if classes is not None and classes != expected:
            lacking = [label for label in expected if label not in classes]
            more = [label for label in classes if label not in expected]
            facts = [f"lack {first_three(lacking)}"] * bool(lacking) + [f"also are {first_three(more)}"] * bool(more)
            raise DataError(
                f"the train data has the classes {describe_names(expected)}, but those of the {name} data "
                f"{' and '.join(facts) or 'have another order'}, so the same label would have two meanings; give both "
                "the same classes, such as by an empty folder for one without images, ImageFolder(..., "
                "allow_empty=True), or renumber the labels with a target_transform"
            )
    return expected


def _number_of_classes(labels: Iterable[SplitLabels], task: Task, columns: int, ignored: tuple[int, ...]) -> int:
    """Return the number of label columns, or of class indices up to the largest label.

    Class indices in one split are consistent with soft labels in another, which have one column per class.
    """
    if task != "multiclass" or columns > 1:
        return columns
    largest = -1
    for split in labels:
        if not split.is_complete:
            raise DataError(
                f"the number of classes of the {split.split} data is unknown without reading all labels of the "
                f"{split.dataset}; pass the number or the names: TorchData(..., classes=10)"
            )
        largest = max(largest, int(torch.where(is_ignored(split.rows, ignored), 0, split.rows).max()))
    return largest + 1


def _require_columns(labels: Iterable[SplitLabels], classes: int) -> None:
    """Raise DataError if the number of label columns is not the number of classes."""
    for split in labels:
        if split.rows.ndim > 1 and split.columns != classes:
            advice = ", or class indices of shape (samples,): labels.squeeze(1)" if split.columns == 1 else ""
            if classes == 1 and split.rows.ndim > 2:
                advice = "; for one class of pixels or tokens, that is (samples, 1, *positions): labels.unsqueeze(1)"
            elif split.rows.ndim > 2 and split.rows.shape[-1] == classes:
                advice = (
                    "; move the classes to the second dimension, (samples, classes, *positions): labels.movedim(-1, 1)"
                )
            if split.columns > 1 and split.may_have_positions:
                advice = "; if they are classes of positions, such as tokens, pass task='multiclass'"
            raise DataError(
                f"the labels of the {split.split} data are {split.description}, but there are {classes} "
                f"classes; expected one column per class, and a network with as many outputs{advice}"
            )
