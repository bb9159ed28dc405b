"""Predict whole splits with a network, and compute the metrics of its predictions."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit, Split, split_name
from kdkit.data.device_data import DeviceData
from kdkit.data.groups import groups_of
from kdkit.data.label_check import LabelCheck
from kdkit.data.loading import batches
from kdkit.data.order import length_of
from kdkit.data.reading import no_batch
from kdkit.engine.collected_outputs import PositionDecisions, Rows, SampleOutputs
from kdkit.engine.failures.not_finite import ADVICE, cause_in_inputs
from kdkit.engine.storage.predictions import REDUCED
from kdkit.errors import DataError, KdkitError
from kdkit.metrics.base import Metric, MetricResult, NetworkReducing, Predictions, reduced_by_network, takes_any_outputs
from kdkit.metrics.bootstrap import without_interval
from kdkit.metrics.paired import SplitPredictions
from kdkit.nets.net import Net
from kdkit.utils.collectives import all_gather, is_distributed, rank, world_size
from kdkit.utils.devices import Precision, autocast
from kdkit.utils.modules import eval_mode, preserve_buffers

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

        Buffers that change, such as the ranges of observers, are restored, except matrices of integers.

        workers: processes that fetch batches; 0 fetches them in this process, None chooses a number.
        between_batches: called before each batch; it may raise an exception.
        Each of several ranks predicts a part of the rows, and all ranks return all predictions. If the weights of the
        network are sharded among them, all ranks predict all rows.
        Raises DataError if the split is empty, and KdkitError if an output is not a finite number, except for -inf,
        which masks a class, or if there is not one for each class.
        """
        network = module if module is not None else net.module
        rows_of_rank = _rows_of_rank(net, split)
        is_whole = rows_of_rank is None
        has_positions = self.data.position_dims > 0
        reducing = [metric for metric in self.metrics if isinstance(metric, NetworkReducing)]
        kept = PositionDecisions(net, self.data, self.metrics) if has_positions else SampleOutputs(net, self.data)
        modules = [network] if isinstance(network, nn.Module) else []
        # Observers of quantization change their ranges in eval mode, too. Matrices of integers are quantized weights.
        with eval_mode(network), preserve_buffers(modules, integers=False):
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
                    outputs = net.outputs_of(network, batch)
                    reduced = reduced_by_network(reducing, network, batch)
                kept.add(outputs, batch, reduced)
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
        # Samples of batches of one may have different shapes, so several cannot be inspected together.
        self._require_finite(net, split, arrays["finite"], inspected=_INSPECTED if batch_size > 1 else 1)
        if problem := classes_problem(net, arrays["outputs"].shape, self.data, self.metrics, split):
            raise KdkitError(problem)
        predictions = Predictions(
            labels=arrays["labels"],
            outputs=arrays["outputs"],
            classes=kept.classes,
            ids=arrays.get("ids"),
            groups=groups_of(split, len(arrays["labels"])),
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

    def _gather(self, rows: Rows, *, is_whole: bool) -> NDArray[Any]:
        """Return the rows of all batches, and of all ranks if each rank predicted a part."""
        values = rows.values()
        if is_whole:
            return values.numpy()
        if rows.padding is not None:  # other ranks may have larger samples, but all must gather the same shape
            sizes = all_gather(torch.tensor([values.shape[1:]], device=self.device))
            values = rows.pad(values, sizes.amax(0).tolist())
        return all_gather(values.to(self.device)).cpu().numpy()

    def _require_finite(
        self, net: Net[Any], split: Split | LoaderSplit, finite: NDArray[Any], *, inspected: int
    ) -> None:
        """Raise KdkitError for NaN or infinity, which argmax and thresholds would turn into plausible metrics.

        finite: whether the outputs of each sample are finite, (samples,). inspected: the most samples to inspect.
        """
        if finite.all():
            return
        cause = None
        if not isinstance(split, LoaderSplit):
            rows = torch.from_numpy((~finite).nonzero()[0][:inspected])
            has_unknown, name = self.data.has_unknown, split_name(self.data, split)
            cause = cause_in_inputs(split.batch(rows, 0), has_unknown=has_unknown, split=split, name=name)
        raise KdkitError(
            f"net {net.name!r} has outputs that are not finite numbers, for {(~finite).sum()} of {len(finite)} "
            f"samples; {cause or ADVICE}"
        )


def classes_problem(
    net: Net[Any], shape: tuple[int, ...], data: Data, metrics: Sequence[Metric], split: Split | LoaderSplit
) -> str | None:
    """Return the problem of outputs with another number of columns than classes, such as more candidates of a query.

    shape: of the outputs for samples of the split. Returns None if there is none, or if a metric takes any outputs.
    """
    is_by_class = data.task != "regression" and not data.position_dims
    count = len(net.classes or data.classes)
    if not is_by_class or shape[1:] == (count,) or any(takes_any_outputs(without_interval(item)) for item in metrics):
        return None
    return (
        f"net {net.name!r} has outputs {shape} for the {split_name(data, split) or 'evaluated'} data, but {count} "
        f"classes need {(shape[0], count)}; if they are scores of candidates, all splits need as many candidates"
    )


def compute_metrics(metrics: Sequence[Metric], validation: Predictions, test: Predictions) -> dict[str, MetricResult]:
    """Return every metric by name. Thresholds are fitted on `validation`, results are computed on `test`."""
    return {metric.name: metric.fit(validation).compute(test) for metric in metrics}


def add_note(results: dict[str, MetricResult], note: str, metric: str = "") -> None:
    """Add a note to the result of a metric, by default the first one."""
    name = metric or next(iter(results))
    results[name] = replace(results[name], note="; ".join(filter(None, [results[name].note, note])))


def note_on_classes(net: Net[Any], data: Data, predictions: Predictions) -> str:
    """Return a note if the metrics of predictions leave out classes that only the data or the net has; "" otherwise."""
    count, of_data, of_net = len(predictions.classes), len(data.classes), len(net.classes or data.classes)
    if data.task == "regression":
        return ""
    if count < of_data:
        entries = {"multilabel": "", "multiclass": "positions of " if data.position_dims else "samples of "}[data.task]
        return (
            f"net {net.name!r} has {count} of the {of_data} classes, and its metrics leave out {entries}the others: "
            "they cannot be compared with those of networks that have all classes"
        )
    if count < of_net and data.task == "multiclass":
        return f"the metrics of net {net.name!r} tell how well it chooses among {count} of its {of_net} classes"
    return ""


def _rows_of_rank(net: Net[Any], split: Split | LoaderSplit) -> Tensor | None:
    """Return the rows that this rank predicts, (rows,); None if it predicts the whole split."""
    is_divisible = is_distributed() and not isinstance(split, LoaderSplit) and len(split) >= world_size()
    if not is_divisible or net.is_sharded:
        return None
    return torch.tensor_split(torch.arange(len(split)), world_size())[rank()]
