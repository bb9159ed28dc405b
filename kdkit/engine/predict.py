"""Predict whole splits with a network, and compute the metrics of its predictions."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit, Split, split_name
from kdkit.data.device_data import DeviceData
from kdkit.data.label_check import LabelCheck
from kdkit.data.labels import is_ignored
from kdkit.data.loading import batches
from kdkit.data.order import length_of
from kdkit.data.reading import no_batch
from kdkit.engine.failures.not_finite import ADVICE, cause_in_inputs
from kdkit.engine.stage.class_alignment import Columns, shared_classes, shared_labels
from kdkit.engine.storage.predictions import REDUCED
from kdkit.errors import DataError, KdkitError
from kdkit.metrics.base import Metric, MetricResult, PositionReducing, Predictions
from kdkit.metrics.bootstrap import without_interval
from kdkit.metrics.paired import SplitPredictions
from kdkit.nets.net import Net
from kdkit.utils.collectives import all_gather, is_distributed, rank, world_size
from kdkit.utils.devices import Precision, autocast
from kdkit.utils.modules import eval_mode

_NOTICE_AFTER = 60.0  # seconds until a warning that a stream without a length is still being read; doubled each time
_INSPECTED = 64  # the number of samples whose inputs are inspected if outputs are not finite


class Predictor:
    """Predicts the splits of one data set, on the device of `device_data` and in one precision.

    metrics: those that will be computed; some need more than predicted classes per position, see `PositionReducing`.
    """

    def __init__(
        self, data: Data, device_data: DeviceData, precision: Precision = "fp32", metrics: Sequence[Metric] = ()
    ) -> None:
        self.data = data
        self.device_data = device_data
        self.device = device_data.device
        self.precision: Precision = precision
        self.metrics = tuple(without_interval(metric) for metric in metrics)
        self._ended: set[int] = set()  # the ids of splits that were read to the end

    @torch.no_grad()
    def predict(
        self,
        net: Net[Any],
        split: Split | LoaderSplit,
        *,
        batch_size: int,
        module: nn.Module | None = None,
        workers: int | None = 0,
        between_batches: Callable[[], None] | None = None,
    ) -> Predictions:
        """Run `net` (or `module`, such as its EMA) in eval mode over `split` and return its predictions.

        workers: processes that fetch batches; 0 fetches them in this process, None chooses a number.
        between_batches: called before each batch; it may raise an exception.
        Each of several ranks predicts a part of the rows, and all ranks return all predictions. If the weights of the
        network are sharded among them, all ranks predict all rows.
        Raises DataError if the split is empty, and KdkitError if an output is not a finite number, except for -inf,
        which masks a class.
        """
        network = module if module is not None else net.module
        rows_of_rank = _rows_of_rank(net, split)
        is_whole = rows_of_rank is None
        has_positions = self.data.position_dims > 0
        kept = _PositionDecisions(net, self.data, self.metrics) if has_positions else _SampleOutputs(net, self.data)
        with eval_mode(network):
            loaded = self.device_data.load(
                batches(split, batch_size, order=rows_of_rank, pin=self.device_data.pins),
                workers=workers,
                check=LabelCheck.of_data(self.data, split),
                keep_draws=int(is_whole),
            )
            for batch in self._read(loaded, split):
                if between_batches is not None:
                    between_batches()
                batch = batch.to(self.device)  # only batches of a user-defined DataLoader are not there yet
                with autocast(self.precision, self.device):
                    outputs = net.through(network, batch)
                kept.add(outputs, batch)
        if not kept.collected:
            if isinstance(split, LoaderSplit):
                raise no_batch(split_name(self.data, split) or "evaluated")
            raise DataError("there is nothing to predict: the split is empty")
        batches_read = kept.collected["outputs"].batches
        arrays = {
            name: self._gather(rows, is_whole=is_whole)
            for name, rows in kept.collected.items()
            if rows.batches == batches_read  # only some batches of a user-defined DataLoader may have ids
        }
        self._require_finite(net, split, arrays["finite"])
        predictions = Predictions(
            labels=arrays["labels"],
            outputs=arrays["outputs"],
            classes=kept.classes,
            ids=arrays.get("ids"),
            groups=_groups(split),
            per_position=has_positions,
            reduced={name.removeprefix(REDUCED): arrays[name] for name in arrays if name.startswith(REDUCED)},
        )
        return kept.finished(predictions)

    def predict_splits(self, net: Net[Any], *, batch_size: int) -> SplitPredictions:
        """Return the predictions for the validation and test splits; without a test split, both are the former.

        Raises the errors of `predict`.
        """
        validation = self.predict(net, self.data.validation, batch_size=batch_size)
        test = validation if self.data.test is None else self.predict(net, self.data.test, batch_size=batch_size)
        return SplitPredictions(validation, test)

    def _read(self, loaded: Iterable[Batch], split: Split | LoaderSplit) -> Iterator[Batch]:
        """Yield the batches of a split, and warn if it may be endless, such as a stream that is meant for training."""
        may_be_endless = length_of(split) is None and id(split) not in self._ended
        began, notice_after, samples = monotonic(), _NOTICE_AFTER, 0
        for batch in loaded:
            yield batch
            samples += len(batch)
            if may_be_endless and monotonic() - began > notice_after:
                notice_after *= 2
                warnings.warn(
                    f"the {getattr(split, 'name', 'evaluated')} data, a stream without a length, is still being read "
                    f"after {samples:,} samples; if it has no end, pass the number of samples to read: "
                    "TorchData(..., evaluation_samples=N)",
                    RuntimeWarning,
                    stacklevel=2,
                )
        self._ended.add(id(split))

    def _gather(self, rows: "_Rows", *, is_whole: bool) -> NDArray[Any]:
        """Return the rows of all batches, and of all ranks if each rank predicted a part."""
        values = rows.values()
        if is_whole:
            return values.numpy()
        if rows.padding is not None:  # other ranks may have larger samples, but all must gather the same shape
            sizes = all_gather(torch.tensor([values.shape[1:]], device=self.device))
            values = rows.pad(values, sizes.amax(0).tolist())
        return all_gather(values.to(self.device)).cpu().numpy()

    def _require_finite(self, net: Net[Any], split: Split | LoaderSplit, finite: NDArray[Any]) -> None:
        """Raise KdkitError for NaN or infinity, which argmax and thresholds would turn into plausible metrics.

        finite: whether the outputs of each sample are finite, (samples,).
        """
        if finite.all():
            return
        cause = None
        if not isinstance(split, LoaderSplit):
            rows = torch.from_numpy((~finite).nonzero()[0][:_INSPECTED])
            has_unknown, name = self.data.has_unknown, split_name(self.data, split)
            cause = cause_in_inputs(split.batch(rows, 0), has_unknown=has_unknown, split=split, name=name)
        raise KdkitError(
            f"net {net.name!r} has outputs that are not finite numbers, for {(~finite).sum()} of {len(finite)} "
            f"samples; {cause or ADVICE}"
        )


def compute_metrics(metrics: Sequence[Metric], validation: Predictions, test: Predictions) -> dict[str, MetricResult]:
    """Return every metric by name. Thresholds are fitted on `validation`, results are computed on `test`."""
    return {metric.name: metric.fit(validation).compute(test) for metric in metrics}


def _rows_of_rank(net: Net[Any], split: Split | LoaderSplit) -> Tensor | None:
    """Return the rows that this rank predicts, (rows,); None if it predicts the whole split."""
    is_divisible = is_distributed() and not isinstance(split, LoaderSplit) and len(split) >= world_size()
    if not is_divisible or net.is_sharded:
        return None
    return torch.tensor_split(torch.arange(len(split)), world_size())[rank()]


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


def _are_finite(outputs: Tensor) -> Tensor:
    """Return whether all outputs of a sample are finite, (batch, ...) -> (batch,)."""
    return outputs.isfinite().reshape(len(outputs), -1).all(1)


class _SampleOutputs:
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
        self.collected: dict[str, _Rows] = {}
        self.classes = tuple(data.classes)
        self.columns: tuple[Columns, ...] | None = None
        if self.task != "regression" and net.classes is not None:
            self.columns = shared_classes((net.classes, self.classes), f"net {net.name!r} and the data", self.classes)
        if self.columns is not None:
            self.classes = tuple(self.classes[index] for index in self.columns[1])

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """Keep what metrics need of a batch."""
        if self.task != "regression":
            outputs = _without_masks(outputs)
        tensors = self.rows(outputs, batch.labels)
        if batch.ids is not None:
            tensors["ids"] = batch.ids
        for name, values in tensors.items():
            self.collected.setdefault(name, _Rows(self.padding.get(name))).add(values)

    def rows(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the tensors of a batch to keep on its device, (batch, ...) by name."""
        outputs = outputs.float()
        return {"outputs": outputs, "labels": labels, "finite": _are_finite(outputs)}

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


class _PositionDecisions(_SampleOutputs):
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
        finite = _are_finite(outputs)
        outputs, labels = self._of_shared_classes(outputs, labels)
        decisions = outputs >= 0 if self.task == "multilabel" else outputs.argmax(1).to(self.dtype)
        if decisions.shape != labels.shape:  # `evaluate` has no check that would find this before
            raise KdkitError(
                f"net {self.net.name!r} has decisions of shape {tuple(decisions.shape)} for labels "
                f"{tuple(labels.shape)}; expected a decision for each label"
            )
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


class _Rows:
    """Collects rows of many batches and copies them to the CPU together, so that batches do not wait for a GPU.

    padding: the value that pads samples to the positions of larger ones; None if all must have the same shape.
    """

    _LARGEST = 2**28  # the most bytes that are kept on the device

    def __init__(self, padding: int | None = None) -> None:
        self.padding = padding
        self.batches = 0
        self._on_cpu: list[Tensor] = []
        self._waiting: list[Tensor] = []
        self._bytes = 0  # of the waiting tensors

    def add(self, rows: Tensor) -> None:
        """Add the rows of a batch, (batch, ...)."""
        self.batches += 1
        self._waiting.append(rows)
        self._bytes += rows.nbytes
        if self._bytes > self._LARGEST:
            self._copy()

    def values(self) -> Tensor:
        """Return all rows on the CPU, (rows, ...)."""
        self._copy()
        return self._cat(self._on_cpu)

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
            raise DataError(
                "the outputs or labels of two batches have different shapes, such as "
                f"{' and '.join(str(('batch', *shape)) for shape in sorted(shapes)[:2])}; pad them to one shape"
            )
        largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
        return torch.cat([self.pad(tensor, largest) for tensor in tensors])


def _groups(split: Split | LoaderSplit) -> NDArray[np.int64] | None:
    """Return the group of each row, such as the patient, or None. Raises DataError if there is not one per row."""
    groups = split.groups
    if groups is None:
        return None
    array = torch.as_tensor(groups).cpu().numpy()
    if array.shape != (len(split),) or array.dtype.kind not in "iu":
        raise DataError(
            f"groups of a split must be integers, one per row: ({len(split)},); got {array.dtype} {array.shape}"
        )
    return array.astype(np.int64)
