"""Check the labels of batches: class indices must be below the number of classes, and floats valid for the task."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kdkit.data.dataset import Data, LoaderSplit, Split, Task, split_name
from kdkit.data.labels import is_ignored
from kdkit.errors import DataError
from kdkit.utils.reprs import describe_numbers


@dataclass(frozen=True, slots=True)
class LabelCheck:
    """Checks the labels of a split: class indices must be below the number of classes, and floats valid for the task.

    accepts_unknown: whether a label may be NaN. ignored: class indices that mean no label. bounded_by: the name of a
    loss that takes only labels in [0, 1], although the task is regression; "" if there is none. source: where the
    labels come from, for messages, if not from the split.
    Checking a batch takes microseconds. Floats on a GPU are not checked, because this would wait for the device;
    `DeferredLabelCheck` checks them.
    """

    split: str
    task: Task
    classes: tuple[str, ...]
    accepts_unknown: bool = False
    ignored: tuple[int, ...] = ()
    bounded_by: str = ""
    source: str = ""

    @classmethod
    def of_data(cls, data: Data, split: Split | LoaderSplit, *, bounded_by: str = "") -> "LabelCheck | None":
        """Return the check of a split; None if the split checks its own labels, as splits of TorchData do."""
        if hasattr(split, "label_check") and not bounded_by:
            return None
        return cls(
            split=split_name(data, split),
            task=data.task,
            classes=tuple(data.classes),
            accepts_unknown=data.has_unknown,
            ignored=tuple(data.ignored_labels),
            bounded_by=bounded_by,
        )

    @property
    def subject(self) -> str:
        """The source of the labels in messages, such as "the train data"."""
        if self.source:
            return self.source
        return f"the {self.split} data" if self.split else "the data"

    def __call__(self, labels: object, rows: Tensor | None = None, batch: int | None = None) -> None:
        """Raise DataError if labels are invalid.

        rows: the rows of the samples in the split, if known. batch: the number of the batch, from 0, if it has one.
        """
        if not isinstance(labels, Tensor) or not labels.numel():
            return
        if not labels.is_floating_point() and (labels.ndim == 1 or self.task == "multiclass"):
            if self.task == "multiclass":
                self._require_below_classes(labels, rows, batch)
        elif labels.device.type == "cpu":
            self._require_valid_numbers(labels, rows, batch)

    def explain_index(self, label: int, position: str) -> str:
        """Return the message about a class index that is out of range. position: such as "row 3"."""
        count = len(self.classes)
        if count == 1:
            return (
                f"a label of {self.subject} is {label} ({position}), but there is one class; for a network with one "
                "output, pass float labels of shape (samples, 1), such as labels.float().unsqueeze(1), which are "
                "multilabel and fit BCEWithLogitsLoss; or give the network two outputs"
            )
        advice = "" if label in self.ignored else f"; if {label} means no label, pass ignore_index={label}"
        if label == count:
            advice += f"; if labels are numbered from 1 to {count}, subtract 1"
        return (
            f"a label of {self.subject} is {label} ({position}), but there are {count} classes, numbered 0 to "
            f"{count - 1}{advice}"
        )

    def _require_below_classes(self, labels: Tensor, rows: Tensor | None, batch: int | None) -> None:
        least, most = map(int, torch.aminmax(labels))
        if least >= 0 and most < len(self.classes):
            return
        labels = torch.where(is_ignored(labels, self.ignored), 0, labels)
        least, most = map(int, torch.aminmax(labels))
        if least < 0 or most >= len(self.classes):
            label = most if most >= len(self.classes) else least
            sample = int((labels == label).nonzero()[0, 0])
            numbers = "; if the labels are numbers, such as counts, make them floats: labels.float()"
            advice = numbers if labels.ndim == 2 else ""
            raise DataError(self.explain_index(label, self._names([sample], rows, batch)) + advice)

    def _require_valid_numbers(self, labels: Tensor, rows: Tensor | None, batch: int | None) -> None:
        if self.accepts_unknown:
            labels = torch.where(labels.isnan(), 0.0, labels)
        # If labels contain NaN, both extremes are NaN, and the comparisons are False.
        least, most = map(float, torch.aminmax(labels))
        is_bounded = self.task != "regression" or bool(self.bounded_by)
        if least >= 0 and most <= 1 if is_bounded else math.isfinite(least) and math.isfinite(most):
            return
        is_valid = (labels >= 0) & (labels <= 1) if is_bounded else labels.isfinite()
        index = (~is_valid).nonzero()  # (invalid labels, dimensions)
        details = []
        if labels.ndim == 2 and labels.shape[1] == len(self.classes):
            details.append(f"class {self.classes[int(index[0, 1])]!r}")
        samples = list(dict.fromkeys(index[:, 0].tolist()))
        details.append(self._names(samples, rows, batch))
        reason = f"which {self.bounded_by} requires" if self.bounded_by else f"because the task is {self.task}"
        expected = f"a number in [0, 1], {reason}" if is_bounded else "a finite number"
        value = labels[tuple(index[0])].item()
        unknown = "" if self.task == "multiclass" else "; if the value means unknown, pass TorchData(..., unknown=...)"
        raise DataError(
            f"a label of {self.subject} is {value} ({', '.join(details)}); expected {expected}; correct such labels, "
            f"or drop the samples if their labels are not known{unknown}"
        )

    def _names(self, samples: Sequence[int], rows: Tensor | None, batch: int | None) -> str:
        """Return how messages name samples of a batch: by their rows, or by their indices in the batch."""
        shown = describe_numbers(samples if rows is None else [int(rows[sample]) for sample in samples])
        if rows is not None:
            return f"row{'s' if len(samples) > 1 else ''} {shown}"
        position = "the batch" if batch is None else f"batch {batch + 1}"
        return f"{'indices' if len(samples) > 1 else 'index'} {shown} of {position}"


class DeferredLabelCheck:
    """Applies a `LabelCheck` to batches that may be on a GPU, without waiting for the GPU.

    The smallest and largest labels on a GPU are copied in the background, and checked after a later batch or at the end
    of an epoch.
    """

    def __init__(self, check: LabelCheck) -> None:
        self.check = check
        self._pending: deque[_PendingCheck] = deque()
        self._batches = 0

    def add(self, labels: Tensor, rows: Tensor | None = None) -> None:
        """Check the labels of a batch, or start to. Raises DataError for invalid labels in this or an earlier batch."""
        batch, self._batches = self._batches, self._batches + 1
        if labels.device.type != "cuda":
            self.check(labels, rows, batch)
            return
        if not labels.numel():
            return
        while self._pending and self._pending[0].copied.query():  # type: ignore[no-untyped-call]  # as below
            self._look()
        compared = torch.where(labels.isnan(), 0, labels) if self.check.accepts_unknown else labels
        if not labels.is_floating_point():
            compared = torch.where(is_ignored(labels, self.check.ignored), 0, labels)
        extremes = torch.stack(torch.aminmax(compared)).to("cpu", non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        copied.record(torch.cuda.current_stream(labels.device))
        self._pending.append(_PendingCheck(copied, extremes, labels, batch))

    def finish(self) -> None:
        """Wait for the copies, and check all batches that were added."""
        while self._pending:
            self._pending[0].copied.synchronize()
            self._look()

    def _look(self) -> None:
        pending = self._pending.popleft()
        try:
            self.check(pending.extremes)
        except DataError:
            self.check(pending.labels.cpu(), None, pending.batch)  # raises an error that names the sample and the class
            raise


class _PendingCheck(NamedTuple):
    """The labels of a batch on a GPU. extremes: the smallest and the largest, on the CPU once `copied` has happened."""

    copied: torch.cuda.Event
    extremes: Tensor
    labels: Tensor
    batch: int
