"""The gates that an export must pass: its outputs and metrics must equal those of its network, within a tolerance."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.data.dataset import LoaderSplit, Split, reported_split
from kdkit.data.device_data import DeviceData
from kdkit.engine.predict import Predictor
from kdkit.errors import KdkitError, first_line
from kdkit.export.base import Model
from kdkit.export.source import ExportSource
from kdkit.metrics.base import Metric, Predictions, lower_is_better
from kdkit.nets.net import Net
from kdkit.utils.modules import eval_mode

_SAMPLES = 64  # real samples whose outputs are compared
_BATCH = 16
_MULTIPLES = (1, 2, 4, 8, 16, 32)  # other sizes are multiples of the first one that the network takes, as of a U-Net


class ExportRunError(KdkitError):
    """A runtime fails for an exported file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericGate:
    """The largest difference between outputs of an export and of its network, by kind of input.

    tolerance: the largest allowed difference; None if outputs are only measured, because the format rounds.
    largest_differences: relative to the largest output of the network if that exceeds 1, because rounding errors grow
    with the numbers.
    """

    tolerance: float | None
    largest_differences: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether all differences are within the tolerance."""
        return all(map(self.allows, self.largest_differences.values()))

    def allows(self, difference: float) -> bool:
        """Return whether a difference is within the tolerance. NaN, for inputs that are not taken, is not."""
        return difference <= (math.inf if self.tolerance is None else self.tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A metric of the network and of its export. points_lost: how much worse the export is, in hundredths."""

    network: float
    export: float
    points_lost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricGate:
    """The metrics of an export against those of its network, on one split with the same thresholds.

    points: how much worse each may be. scores: by the names of the metrics.
    """

    points: float
    split: str
    samples: int
    scores: Mapping[str, Score]

    @property
    def passed(self) -> bool:
        """Whether no metric is worse than allowed; NaN counts as worse."""
        return all(score.points_lost <= self.points for score in self.scores.values())

    @property
    def loss(self) -> float:
        """The points of the metric that loses most; infinity if one is undefined for the export alone."""
        lost = [score.points_lost for score in self.scores.values()]
        return max((math.inf if math.isnan(points) else points for points in lost), default=0.0)


class Reference:
    """The reference for an export: the metrics of the network, with thresholds from the validation split.

    validation, test: predictions of the network on the CPU. metrics: fitted on the validation split, without intervals.
    """

    def __init__(self, source: ExportSource) -> None:
        self.source = source
        data = source.data
        self.split, self._tested = reported_split(data)
        self._size = source.recipe.stages[-1].training.batch_size
        self.validation = self._predict(source.net, data.validation)
        self.test = self.validation if data.test is None else self._predict(source.net, self._tested)
        self.metrics: tuple[Metric, ...] = tuple(metric.fit(self.validation) for metric in source.metrics)
        self.scores = {metric.name: metric.compute(self.test).value for metric in self.metrics}

    def metric_gate(self, model: Model, points: float) -> MetricGate:
        """Return the metric gate of an export. Raises ExportRunError if it fails for a batch."""
        try:
            exported = self._predict(_as_net(self.source, model), self._tested)
        except ExportRunError:
            raise
        except KdkitError:  # an output is not a finite number
            exported = None
        scores = {}
        for metric in self.metrics:
            network = self.scores[metric.name]
            export = math.nan if exported is None else metric.compute(exported).value
            worse = (export - network) if lower_is_better(metric) else (network - export)
            if exported is not None and math.isnan(network) and math.isnan(export):
                worse = 0.0  # undefined for this split, for example without positives
            lost = 100 * worse / self._scale(metric) if worse else 0.0
            scores[metric.name] = Score(network=network, export=export, points_lost=lost)
        return MetricGate(points=points, split=self.split, samples=len(self.test), scores=scores)

    def _scale(self, metric: Metric) -> float:
        """Return the divisor for differences of a metric."""
        value = abs(self.scores[metric.name])
        # An error has the unit of the labels, so it may have any size.
        if self.source.data.task == "regression" and lower_is_better(metric):
            # At least a small part of the error of predicting the mean, because rounding may double a tiny error.
            mean = replace(self.test, outputs=np.full_like(self.test.outputs, np.nanmean(self.test.labels)))
            return max(value, 1e-4 * abs(metric.compute(mean).value), sys.float_info.min)
        # A metric above 1, such as a perplexity, is compared relative to its value.
        return max(1.0, value)

    def numeric_gate(self, model: Model, tolerance: float | None, *, dynamic: bool = True) -> NumericGate:
        """Return the numeric gate of an export, for real inputs, random inputs, and random inputs of other sizes.

        dynamic: whether the export takes other sizes.
        """
        source = self.source
        real = [source.inputs_of(batch) for batch in source.batches(self._tested, _BATCH, count=_SAMPLES)]
        kinds = {"real": real}
        random = source.random_inputs(like=real[0])
        if self._takes(random):
            kinds["random"] = [random]
        with eval_mode(source.module), torch.no_grad():
            differences = {
                # not the `max` of Python, which may leave out NaN
                kind: float(np.max([self._difference(model, inputs) for inputs in several]))
                for kind, several in kinds.items()
            }
            if dynamic:
                differences["other sizes"] = self._difference_at_other_sizes(model, real[0])
        return NumericGate(tolerance=tolerance, largest_differences=differences)

    def _takes(self, inputs: Sequence[Tensor]) -> bool:
        """Return whether the network takes random inputs. It may not if they must fit each other, such as lengths."""
        try:
            with eval_mode(self.source.module), torch.no_grad():
                self.source.module(*(tensor.clone() for tensor in inputs))
        except Exception:  # of any kind
            return False
        return True

    def _difference(self, model: Model, inputs: Sequence[Tensor]) -> float:
        # Clones, because a network may change its inputs in place.
        expected = self.source.module(*(tensor.clone() for tensor in inputs)).float().numpy()
        outputs = run_model(self.source, model, inputs)
        if outputs.shape != expected.shape:
            return math.nan
        # A masked class is -inf in both, and a sample that is only padding may be NaN in both.
        equal = (outputs == expected) | (np.isnan(outputs) & np.isnan(expected))
        by_name = dict(zip(self.source.input_names, inputs, strict=True))
        mask = None if "decoder_input_ids" in by_name else by_name.get("attention_mask")
        # The outputs of padding mean nothing: if nothing is before it, it attends to no token, and runtimes differ.
        if mask is not None and expected.ndim == 3 and mask.shape == expected.shape[::2]:
            equal |= (mask == 0).numpy()[:, None]
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            differences = np.where(equal, 0.0, np.abs(outputs - expected))
        largest = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
        return float(differences.max(initial=0.0) / largest)

    def _difference_at_other_sizes(self, model: Model, like: Sequence[Tensor]) -> float:
        """Return the difference for inputs of other sizes; NaN if the network or its export does not take them."""
        several = (self.source.random_inputs(like=like, multiple=multiple) for multiple in _MULTIPLES)
        inputs = next(filter(self._takes, several), None)
        if inputs is None:  # the network may have positions for one length
            return math.nan
        try:
            return self._difference(model, inputs)
        except ExportRunError:
            return math.nan

    def _predict(self, net: Net[Any], split: Split | LoaderSplit) -> Predictions:
        device = torch.device("cpu")
        data = self.source.data
        loader = DeviceData(device, share=0.0, draws=data.draws, passes=1)
        predictor = Predictor(data, loader, "fp32", self.source.metrics)
        return predictor.predict(net, split, batch_size=self._size)


def _as_net(source: ExportSource, model: Model) -> Net[Any]:
    """Return an export as a net with the view and the classes of the network."""

    def module(*args: Any, **kwargs: Any) -> Tensor:
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        return torch.from_numpy(run_model(source, model, inputs))

    net = source.net
    return Net(net.name, module, view=net.view, channels_last=False, classes=net.classes, version="export")


def run_model(source: ExportSource, model: Model, inputs: Sequence[Tensor]) -> Any:
    """Return the outputs of an export for tensors in the order of the inputs. Raises ExportRunError if it fails."""
    arrays = {name: tensor.numpy() for name, tensor in zip(source.input_names, inputs, strict=True)}
    try:
        return model(arrays)
    except Exception as error:  # runtimes raise errors of any kind
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ExportRunError(
            f"the export fails for {shapes}: {type(error).__name__}: {first_line(error)}{source.size_advice(arrays)}"
        ) from error
