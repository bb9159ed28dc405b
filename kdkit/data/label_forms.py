"""The forms of labels: how they are recognized, and compared between splits.

| form | labels | task |
|---|---|---|
| "indices" | (samples,) integers, one class per sample | multiclass |
| "soft" | (samples, classes) floats in [0, 1] whose rows sum to 1, not all 0 and 1 | multiclass |
| "indicators" | (samples, classes) of 0 and 1, of any dtype | multilabel; multiclass if a split has one of the above |
| "positions" | other integers, (samples, *positions), one class per pixel or token | multiclass |
| "numbers" | all other floats | regression |

Floats of 0 and 1 by class may also have positions, (samples, classes, *positions).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from kdkit.data.dataset import Task
from kdkit.errors import DataError

Form = Literal["indices", "soft", "indicators", "positions", "numbers"]

_DESCRIPTIONS: Mapping[Form, str] = {
    "indices": "class indices",
    "soft": "soft labels whose rows sum to 1",
    "indicators": "0 and 1 by class",
    "positions": "class indices per position",
    "numbers": "numbers",
}
_ROWS = 65536  # rows that are compared at a time, to save memory


@dataclass(frozen=True)  # without slots, which exclude cached properties
class SplitLabels:
    """Labels of a split, (samples, ...), as the dataset yields them, but with 0 for unknown labels.

    is_complete: whether these are all of them. dataset: the class of the dataset, for error messages.
    """

    split: str
    rows: Tensor
    is_complete: bool
    dataset: str = ""

    @property
    def columns(self) -> int:
        """The number of label columns; 1 for (samples,)."""
        return self.rows.shape[1] if self.rows.ndim > 1 else 1

    @cached_property
    def form(self) -> Form:
        """The form of the labels. Raises DataError if they have none of the forms."""
        rows = self.rows
        if rows.dtype == torch.bool and rows.ndim == 1:
            raise DataError(
                "the labels are bool, one per sample; make them int64 for two classes that exclude each other "
                "(labels.long()), or (samples, 1) for one class that is present or not (labels.unsqueeze(1))"
            )
        if not rows.is_floating_point():
            if rows.ndim == 1:
                return "indices"
            if rows.ndim == 2 and _is_binary(rows):
                return "indicators"
            _require_no_column(self)
            return "positions"
        if rows.ndim < 2:
            return "numbers"
        if _is_binary(rows):
            return "indicators"
        tolerance = 1e-3 if rows.dtype.itemsize >= 4 else 1e-2  # the sum of rounded numbers is not exactly 1
        is_soft = rows.ndim == 2 and rows.shape[1] > 1 and self.are_shares
        if is_soft and _all(rows, lambda chunk: (chunk.float().sum(1) - 1).abs() <= tolerance):
            return "soft"
        return "numbers"

    @cached_property
    def is_one_hot(self) -> bool:
        """Whether the labels are 0 and 1, with one 1 in each row."""
        rows = self.rows
        return rows.ndim == 2 and _is_binary(rows) and _all(rows, lambda chunk: chunk.sum(1) == 1)

    @property
    def may_have_positions(self) -> bool:
        """Whether the labels are integers that may be classes of positions, (samples, *positions)."""
        return self.rows.ndim > 1 and not self.rows.is_floating_point() and not self.is_one_hot

    @cached_property
    def are_shares(self) -> bool:
        """Whether the labels have one column per class, and all values are in [0, 1]."""
        return self.rows.ndim == 2 and _all(self.rows, lambda chunk: (chunk >= 0) & (chunk <= 1))

    @property
    def description(self) -> str:
        """The dtype and the shape, for error messages."""
        dtype = str(self.rows.dtype).removeprefix("torch.")
        shape = ", ".join(["samples", *map(str, self.rows.shape[1:])])
        return f"{dtype} of shape ({shape}{',' if self.rows.ndim == 1 else ''})"


def task_of(labels: Sequence[SplitLabels]) -> Task:
    """Return the task of the labels of all splits. Raises DataError if they are inconsistent or ambiguous."""
    forms = {split.form for split in labels}
    for split in labels:
        _require_known(split)
    if forms == {"indicators"}:
        return "multilabel"
    # The classes of positions may happen to be only 0 and 1 in one split.
    if "positions" in forms and not any(split.rows.is_floating_point() for split in labels):
        return "multiclass"
    if "numbers" not in forms and all(split.is_one_hot for split in labels if split.form == "indicators"):
        return "multiclass"
    if forms == {"numbers"}:
        return "regression"
    numbers = [split for split in labels if split.form == "numbers"]
    # If numbers of one split happen to be 0 and 1, they are still numbers, unless all could be mixed labels.
    if forms == {"numbers", "indicators"} and not all(split.are_shares for split in numbers):
        return "regression"
    raise DataError(
        f"{_describe(labels)}; the labels of all splits must have the same form; otherwise pass their task: "
        "TorchData(..., task='multilabel'), 'multiclass' or 'regression'"
    )


def require_form(labels: Sequence[SplitLabels], task: Task) -> None:
    """Raise DataError if labels do not fit the task, or if the labels of two splits have different shapes."""
    if task == "multiclass" and position_dims(labels, task):
        for split in labels:
            _require_no_column(split)
        return
    for split in labels:
        form = split.form if task != "regression" else "numbers"
        # Labels with NaN pass here: `LabelCheck` refuses them, with the row.
        is_nan = split.rows.ndim > 1 and split.rows.is_floating_point() and bool(split.rows.isnan().any())
        if task == "multiclass" and not (form in ("indices", "soft") or split.is_one_hot or is_nan):
            raise DataError(
                f"the labels of the {split.split} data are {split.description}, but the task is multiclass; expected "
                "int64 class indices of shape (samples,), such as labels.long(), or (samples, classes) floats whose "
                "rows sum to 1"
            )
        if task == "multilabel" and split.rows.ndim < 2:
            raise DataError(
                f"the labels of the {split.split} data are {split.description}, but the task is multilabel; expected "
                "0 and 1 of shape (samples, classes), such as labels.float().unsqueeze(1) for one class"
            )
    # Class indices have no columns. They are consistent with soft labels of any split.
    _require_same_shape([split for split in labels if task == "regression" or split.rows.ndim > 1], task)


def position_dims(labels: Sequence[SplitLabels], task: Task) -> int:
    """Return the number of position dimensions if every position has a label; 0 if there is one label per sample.

    Raises DataError if only some splits have labels per position.
    """
    if task == "multilabel":
        return max(0, labels[0].rows.ndim - 2)
    if task != "multiclass" or not any(split.may_have_positions for split in labels):
        return 0
    if len({split.rows.ndim for split in labels}) > 1 or any(split.rows.is_floating_point() for split in labels):
        raise DataError(
            f"{_describe(labels)}; class indices per position must be integers of shape (samples, *positions) in all "
            "splits"
        )
    return labels[0].rows.ndim - 1


def _require_same_shape(labels: Sequence[SplitLabels], task: Task) -> None:
    """Raise DataError if labels have other dimensions or columns in one split than in another.

    The positions of two splits may differ, such as the sizes of images or grids.
    """
    shapes = set()
    for split in labels:
        has_columns = task == "multilabel" or split.rows.ndim == 2
        shapes.add((split.rows.ndim, *split.rows.shape[1 : 1 + has_columns]))
    if len(shapes) <= 1:
        return
    dims = {split.rows.ndim for split in labels}
    advice = ""
    if task == "regression" and not labels[0].rows.is_floating_point():
        advice = (
            "; if a loss that the model computes takes those of training, such as the identities of faces, put them "
            "among the inputs of Unlabelled(...), and use kdkit.model_loss"
        )
    elif task == "multilabel" and dims == {2} and all(split.may_have_positions for split in labels):
        advice = "; if they are classes of positions, such as frames, pass task='multiclass'"
    elif task == "multilabel" and dims == {2}:
        advice = "; for one class at positions, such as frames, that is (samples, 1, positions): labels.unsqueeze(1)"
    elif task == "multilabel" and 2 not in dims:
        advice = "; classes must be the second dimension: if they are the last one, labels.movedim(-1, 1)"
    parts = [f"{split.split} data are {split.description}" for split in labels]
    raise DataError(
        f"the labels of the {', those of the '.join(parts)}; the labels of all splits must have the same shape{advice}"
    )


def _require_no_column(labels: SplitLabels) -> None:
    if labels.rows.shape[1] == 1:  # a column of indices, or masks of images with a channel
        floats = "for a network with one output" if labels.rows.ndim > 2 else "if they are numbers, such as counts"
        raise DataError(
            f"the labels of the {labels.split} data are {labels.description}; expected one class index per sample, "
            f"(samples,), or per position, (samples, *positions): labels.squeeze(1), or, {floats}, floats: "
            "labels.float()"
        )


def _require_known(labels: SplitLabels) -> None:
    """Raise DataError if labels are 0 and 1 by class, except for some -1 or NaN."""
    rows = labels.rows
    if rows.ndim != 2 or labels.form != "numbers":
        return
    is_unknown = rows.isnan() | (rows == -1)
    if not is_unknown.any() or not (rows == 0).any() or not ((rows == 0) | (rows == 1) | is_unknown).all():
        return
    row, column = (int(index) for index in is_unknown.nonzero()[0])
    value = "float('nan')" if rows[row, column].isnan() else -1
    raise DataError(
        f"the labels of the {labels.split} data are 0 and 1, but also {rows[row, column].item()} (row {row}, column "
        f"{column}); if it means unknown, pass TorchData(..., unknown={value}), or drop such samples; if the labels "
        "are numbers, pass task='regression'"
    )


def _describe(labels: Sequence[SplitLabels]) -> str:
    parts = [f"{split.split} data are {_DESCRIPTIONS[split.form]} ({split.description})" for split in labels]
    return f"the labels of the {', those of the '.join(parts)}"


def _is_binary(rows: Tensor) -> bool:
    return rows.dtype == torch.bool or _all(rows, lambda chunk: (chunk == 0) | (chunk == 1))


def _all(rows: Tensor, predicate: Callable[[Tensor], Tensor]) -> bool:
    return all(bool(predicate(chunk).all()) for chunk in torch.split(rows, _ROWS))
