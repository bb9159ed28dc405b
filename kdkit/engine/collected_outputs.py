"""Collect the outputs and labels of the batches of a split, as predictions for metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data
from kdkit.data.labels import is_ignored
from kdkit.engine.stage.class_alignment import Columns, shared_classes, shared_labels
from kdkit.engine.storage.predictions import REDUCED
from kdkit.errors import DataError, KdkitError
from kdkit.metrics.base import Metric, PositionReducing, Predictions
from kdkit.nets.net import Net


class SampleOutputs:
    """Keeps the outputs for samples with one label each. Classes that the network or the data lacks are left out.

    classes: those that are kept. columns: of these classes in the outputs and in the labels; None if they are the same.
    padding: the values that pad samples to the positions of larger ones, by the name of the rows. collected: the rows
    of all batches by name.
    """

    padding: Mapping[str, int] = {}

    def __init__(self, net: Net[Any], data: Data) -> None:
        self.net = net
        self.task = data.task
        self.ignored = tuple(data.ignored_labels)
        self.collected: dict[str, Rows] = {}
        self.classes = tuple(data.classes)
        self.columns: tuple[Columns, ...] | None = None
        if self.task != "regression" and net.classes is not None:
            self.columns = shared_classes((net.classes, self.classes), f"net {net.name!r} and the data", self.classes)
        if self.columns is not None:
            self.classes = tuple(self.classes[index] for index in self.columns[1])

    def add(self, outputs: Tensor, batch: Batch, reduced: Mapping[str, Tensor]) -> None:
        """Keep what metrics need of a batch. reduced: what metrics that run the network keep, by their names."""
        tensors = self.rows(outputs, batch.labels)
        tensors |= {REDUCED + name: values for name, values in reduced.items()}
        if batch.ids is not None:
            tensors["ids"] = batch.ids
        for name, values in tensors.items():
            self.collected.setdefault(name, Rows(name, self.padding.get(name))).add(values)

    def rows(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the tensors of a batch to keep on its device, (batch, ...) by name."""
        if self.task != "regression":
            outputs = _without_masks(outputs).float()
        elif outputs.dtype != torch.float64:  # which keeps large numbers, such as energies of molecules, exact
            outputs = outputs.float()
        finite = outputs.isfinite().reshape(len(outputs), -1).all(1)
        return {"outputs": outputs, "labels": labels, "finite": finite}

    def finished(self, predictions: Predictions) -> Predictions:
        """Return the predictions of samples that have a label, for the shared classes."""
        if self.task == "multiclass" and predictions.labels.ndim == 2:  # soft labels
            predictions = replace(predictions, labels=predictions.labels.argmax(1))
        if self.task == "regression":  # a reader of predictions would take whole numbers for classes
            numbers = predictions.labels.astype(np.result_type(predictions.labels, np.float32), copy=False)
            predictions = replace(predictions, labels=numbers)
        if self.ignored:
            predictions = predictions.rows(~np.isin(predictions.labels, self.ignored))
        if self.columns is None:
            return predictions
        outputs, labels = predictions.outputs[:, list(self.columns[0])], predictions.labels
        if self.task == "multilabel":
            return replace(predictions, labels=labels[:, list(self.columns[1])], outputs=outputs)
        matches = labels[:, None] == np.asarray(self.columns[1])  # (samples, shared classes)
        return replace(predictions, labels=matches.argmax(1), outputs=outputs).rows(matches.any(1))


class PositionDecisions(SampleOutputs):
    """Keeps predicted classes per position, and labels as in `Predictions`, with -1 for no label.

    Metrics that need the outputs reduce them first.
    """

    padding: Mapping[str, int] = {"outputs": 0, "labels": -1}

    def __init__(self, net: Net[Any], data: Data, metrics: Sequence[Metric]) -> None:
        super().__init__(net, data)
        self.reducing = {metric.name: metric for metric in metrics if isinstance(metric, PositionReducing)}
        # The smallest dtype that also holds -1. Collectives do not support 16-bit integers on every device.
        self.dtype = torch.int8 if len(data.classes) < 128 else torch.int32

    def rows(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the decisions, the labels, and the reduced outputs. Raises KdkitError if shapes do not match."""
        # Maxima, because a test of every logit takes much more time and memory. They are NaN if a logit is NaN, and
        # infinite if a logit is, or if all of them are masked.
        finite = outputs.amax(1).isfinite().reshape(len(outputs), -1).all(1)
        outputs, labels = self._of_shared_classes(outputs, labels)
        # On a CPU, max takes half of the time of argmax.
        decisions = outputs >= 0 if self.task == "multilabel" else outputs.max(1).indices.to(self.dtype)
        if decisions.shape != labels.shape:  # `evaluate` has no check that would find this before
            raise KdkitError(
                f"net {self.net.name!r} has decisions of shape {tuple(decisions.shape)} for labels "
                f"{tuple(labels.shape)}; expected a decision for each label"
            )
        if self.reducing and bool((outputs.amin(1) == -torch.inf).any()):
            outputs = _without_masks(outputs)
        reduced = {REDUCED + name: metric.reduce_positions(outputs, labels) for name, metric in self.reducing.items()}
        return {"outputs": decisions, "labels": labels, "finite": finite, **reduced}

    def finished(self, predictions: Predictions) -> Predictions:
        """Return the predictions unchanged: `rows` has left out other classes."""
        return predictions

    def _of_shared_classes(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and labels with only the classes that network and data share, and -1 for no label."""
        if self.columns is not None:
            # (batch, shared classes, *positions): other classes cannot be predicted
            outputs = outputs.index_select(1, torch.tensor(self.columns[0], device=outputs.device))
        if self.task == "multilabel":
            if self.columns is not None:
                labels = labels.index_select(1, torch.tensor(self.columns[1], device=labels.device))
            return outputs, torch.where(labels.isnan(), -1, labels > 0.5).to(torch.int8)  # labels may be mixed
        has_label = ~is_ignored(labels, self.ignored)
        if self.columns is not None:
            labels, has_label = shared_labels(labels, torch.tensor(self.columns[1], device=labels.device))
        return outputs, torch.where(has_label, labels, -1).to(self.dtype)


class Rows:
    """Collects rows of many batches and copies them to the CPU together, so that batches do not wait for a GPU.

    name: for messages. padding: the value that pads samples to the positions of larger ones; None if all must have the
    same shape.
    """

    _LARGEST = 2**28  # the most bytes that are kept on the device

    def __init__(self, name: str, padding: int | None = None) -> None:
        self.name = name
        self.padding = padding
        self.batches = 0
        self._on_cpu: list[Tensor] = []
        self._waiting: list[Tensor] = []
        self._bytes = 0  # of the waiting tensors

    def add(self, rows: Tensor) -> None:
        """Add the rows of a batch, (batch, ...)."""
        self.batches += 1
        rows = rows.detach()  # from the graph of a network that computes in torch.enable_grad
        rows = rows.float() if rows.dtype == torch.bfloat16 else rows  # which numpy lacks
        self._waiting.append(rows)
        self._bytes += rows.nbytes
        if self._bytes > self._LARGEST:
            self._copy()

    def values(self) -> Tensor:
        """Return all rows on the CPU, (rows, ...)."""
        self._copy()
        parts, self._on_cpu = self._on_cpu, []
        if len({(part.shape[1:], part.dtype) for part in parts}) == 1:
            rows, filled = parts[0].new_empty((sum(map(len, parts)), *parts[0].shape[1:])), 0
            while parts:  # each part is freed once it is copied, because all of them may take most of the memory
                part = parts.pop(0)
                rows[filled : filled + len(part)] = part
                filled += len(part)
        else:
            rows = self._cat(parts)
        self._on_cpu = [rows]
        return rows

    def pad(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Pad the dimensions of rows after the first one to these sizes, which must not be smaller."""
        # `pad` takes (before, after) for each dimension, from the last to the first.
        missing = [size - have for size, have in zip(sizes, rows.shape[1:], strict=True)]
        widths = [width for after in reversed(missing) for width in (0, after)]
        return nn.functional.pad(rows, widths, value=self.padding)

    def _copy(self) -> None:
        if self._waiting:
            self._on_cpu.append(self._cat(self._waiting).cpu())
            self._waiting, self._bytes = [], 0

    def _cat(self, tensors: list[Tensor]) -> Tensor:
        shapes = {tensor.shape[1:] for tensor in tensors}
        if len(shapes) == 1:
            return torch.cat(tensors)
        if self.padding is None or len({len(shape) for shape in shapes}) > 1:
            name = self.name.removeprefix(REDUCED)
            values = f"the {name}" if name == self.name else f"the values that metric {name!r} keeps"
            raise DataError(
                f"{values} of two batches have different shapes, such as "
                f"{' and '.join(str(('batch', *shape)) for shape in sorted(shapes)[:2])}; pad them to one shape"
            )
        largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
        return torch.cat([self.pad(tensor, largest) for tensor in tensors])


def _without_masks(outputs: Tensor) -> Tensor:
    """Return outputs in which masked classes, -inf, have a low finite number, because metrics need finite values.

    If all classes of a sample are -inf, they are kept: that is an error, not a mask.
    """
    if not outputs.is_floating_point() or outputs.ndim < 2:
        return outputs
    masked = outputs == -torch.inf
    masked = masked & ~masked.all(1, keepdim=True)
    least = max(torch.finfo(outputs.dtype).min, torch.finfo(torch.float32).min)  # predictions are in float32
    return outputs.masked_fill(masked, least / 4)  # the sum of two is finite
