"""The interface of a metric: thresholds are fitted on one split, and the metric is computed on another."""

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.errors import DataError, KdkitError, RecipeError, describe
from kdkit.utils.reprs import describe_array, describe_count, describe_names

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Numbers = NDArray[np.number[Any]]

_ERRORS_OF_SHARES = ("brier", "calibration_error")  # how the names of errors begin that are shares
_LISTED = 20  # the most classes that a note names
_BLOCK = 1 << 18  # how many numbers are processed at a time, so that they stay in the CPU cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """The outputs of a network for a split, with the labels.

    labels: (samples,) class indices, or (samples, classes) of 0 and 1, NaN if unknown.
    outputs: (samples, classes) logits.
    ids: (samples,), or None. groups: (samples,), equal for dependent samples, such as those of one patient, or None.
    per_position: whether labels and outputs are decisions per pixel or token, because logits would take too much
    memory: (samples, *positions) class indices, or (samples, classes, *positions) of 0 and 1 with bool outputs. The
    label is -1 at positions without a label, and in the padding of samples of different sizes.
    reduced: by metric name, (samples, ...), what the metric's `reduce_positions` kept of the logits per position, or
    its `reduce_network` of what the network did.
    Raises DataError if they are not arrays, if their lengths differ, or if labels or outputs are not numbers.
    """

    labels: NDArray[Any]
    outputs: NDArray[Any]
    classes: tuple[str, ...]
    ids: NDArray[np.int64] | None = None
    groups: NDArray[np.int64] | None = None
    per_position: bool = False
    reduced: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))  # a list would not equal a tuple
        columns = {"labels": self.labels, "outputs": self.outputs, "ids": self.ids, "groups": self.groups}
        columns |= self.reduced
        for name, column in columns.items():
            if not isinstance(column, np.ndarray | None):
                raise DataError(
                    f"predictions must be numpy arrays; got {name} that are a {type(column).__name__}; convert them, "
                    "such as a tensor with tensor.cpu().numpy()"
                )
        lengths = {name: len(column) for name, column in columns.items() if column is not None}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{length} {name}" for name, length in lengths.items())
            raise DataError(
                f"predictions must have a label and an output for each sample; got {listed}; pass the same rows"
            )
        for name, column in (("labels", self.labels), ("outputs", self.outputs)):
            if column.dtype.kind not in "biuf":
                raise DataError(
                    f"predictions must be arrays of numbers or bool; got {name} of dtype {column.dtype}; convert them, "
                    "such as class names to class indices"
                )

    def __repr__(self) -> str:
        columns = {"labels": self.labels, "outputs": self.outputs, "ids": self.ids, "groups": self.groups}
        arrays = [f"{name} {describe_array(array)}" for name, array in columns.items() if array is not None]
        classes = f"{describe_count(len(self.classes), 'class', 'classes')} ({describe_names(self.classes)})"
        return f"Predictions({describe_count(len(self), 'sample')}, {classes}, {', '.join(arrays)})"

    def __len__(self) -> int:
        return len(self.outputs)

    def rows(self, rows: NDArray[Any] | slice) -> "Predictions":
        """Return the samples in these rows. rows: indices, a mask or a slice."""
        return replace(
            self,
            labels=self.labels[rows],
            outputs=self.outputs[rows],
            ids=None if self.ids is None else self.ids[rows],
            groups=None if self.groups is None else self.groups[rows],
            reduced={name: values[rows] for name, values in self.reduced.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """The value of a metric, its values by class if it has them, and a note for readers.

    interval: (low, high) for the value; None without a `BootstrapInterval`. intervals_by_class: the same by class.
    Numbers of numpy and scalar tensors become floats, and the names of classes become strings.
    Raises RecipeError if a value is not a number, or by_class or the note has another form.
    """

    value: float
    by_class: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    interval: tuple[float, float] | None = None
    intervals_by_class: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.by_class, Mapping) or not isinstance(self.note, str):
            raise RecipeError(
                "a MetricResult has a mapping from class names to numbers as its by_class, and a text as its note; got "
                f"by_class {describe(self.by_class)} and note {describe(self.note)}"
            )
        object.__setattr__(self, "value", _as_float(self.value, "value"))
        values = {str(name): _as_float(value, f"value of {name!r}") for name, value in self.by_class.items()}
        object.__setattr__(self, "by_class", values)

    def __repr__(self) -> str:
        interval = "" if self.interval is None else " ({:.4g} to {:.4g})".format(*self.interval)
        classes = [f"by_class: {describe_count(len(self.by_class), 'value')}"] if self.by_class else []
        note = [f"note={self.note!r}"] if self.note else []
        return f"MetricResult({', '.join([f'{self.value:.4g}{interval}', *classes, *note])})"


def _as_float(value: Any, name: str) -> float:
    """Return a number as a float. Raises RecipeError if it is not one number."""
    try:
        if isinstance(value, str):  # which float() would parse
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor with several numbers
        raise RecipeError(f"the {name} in a MetricResult must be one number; got {describe(value)}") from error


@runtime_checkable
class Metric(Protocol):
    """A metric. Higher is better, unless it has the attribute `lower_is_better = True`.

    The attribute `accepts_unknown = True` declares that the metric leaves out unknown labels, which are NaN. The
    attribute `accepts_positions = True` declares that it takes predictions per position, see `Predictions`; if it needs
    their logits, it is also `PositionReducing`. A metric that needs the network is `NetworkReducing`. The attribute
    `is_biased = True` declares that its value depends on the number of samples, and more so for some networks, as a
    binned calibration error does. Differences between two networks then have no interval, and so no verdict. The
    attribute `any_outputs = True` declares that it takes outputs of any shape, such as embeddings of any width, so that
    all teachers of a regression have it.

    `fit` returns a copy with thresholds, and does not change `self`.
    """

    @property
    def name(self) -> str:
        """The name in tables, unique in a recipe."""
        ...

    def fit(self, validation: Predictions) -> "Metric":
        """Return the metric with thresholds that are chosen on the validation split, if it has thresholds."""
        ...

    def compute(self, test: Predictions) -> MetricResult:
        """Return the metric on another split. The note names classes without positives."""
        ...


@runtime_checkable
class PositionReducing(Protocol):
    """A metric that needs the logits of positions. Because these are not stored, it reduces them batch by batch."""

    def reduce_positions(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return what the metric needs of each sample, (batch, ...), for `Predictions.reduced[metric.name]`.

        outputs: logits, (batch, classes, *positions). labels: (batch, *positions), or 0 and 1 by class, (batch,
        classes, *positions); -1 at positions without a label.
        """
        ...


@runtime_checkable
class NetworkReducing(Metric, Protocol):
    """A metric that runs the network itself, such as on texts that the network generates."""

    def reduce_network(self, network: Any, batch: Batch) -> Tensor:
        """Return what the metric needs of each sample, (batch, ...), for `Predictions.reduced[metric.name]`.

        network: the module that is evaluated, in eval mode and without gradients: of a student, its average or its
        baseline, or of a teacher. batch: on its device; labels have the `ignore_index` at positions without a label.
        """
        ...


class WithoutThresholds:
    """Base class of metrics that have nothing to fit."""

    __slots__ = ()

    def fit(self, validation: Predictions) -> Self:
        """Return self, because there are no thresholds."""
        return self


def lower_is_better(metric: Metric) -> bool:
    """Return whether lower values of the metric are better."""
    return bool(getattr(metric, "lower_is_better", False))


def is_biased(metric: Metric) -> bool:
    """Return whether the value of the metric depends on the number of samples, see `Metric`."""
    return bool(getattr(metric, "is_biased", False))


def takes_any_outputs(metric: Metric) -> bool:
    """Return whether the metric takes outputs of any shape, see `Metric`."""
    return bool(getattr(metric, "any_outputs", False))


def is_better(metric: Metric, value: float, reference: float) -> bool:
    """Return whether a value of this metric is better than a reference value. NaN is worse than any number."""
    if math.isnan(value) or math.isnan(reference):  # comparisons with NaN are always False
        return not math.isnan(value)
    return value < reference if lower_is_better(metric) else value > reference


def reduced_by_network(metrics: Iterable[NetworkReducing], network: Any, batch: Batch) -> dict[str, Tensor]:
    """Return what `reduce_network` keeps of a batch, by metric name. Raises KdkitError without a row per sample."""
    reduced: dict[str, Tensor] = {}
    for metric in metrics:
        kept: Any = metric.reduce_network(network, batch)
        if not isinstance(kept, Tensor) or kept.shape[:1] != (len(batch),):
            raise KdkitError(
                f"reduce_network of metric {metric.name!r} must return a tensor with a row for each of the "
                f"{len(batch)} samples; got {describe(kept)}"
            )
        reduced[metric.name] = kept
    return reduced


def reduced_positions(metric: Metric, predictions: Predictions) -> NDArray[Any]:
    """Return what `metric.reduce_positions` kept of the logits per position. Raises DataError if it was not called."""
    if metric.name not in predictions.reduced:
        raise DataError(
            f"metric {metric.name!r} needs the logits of positions, but these predictions have classes only; add it to "
            "Recipe(metrics=...) before the network predicts"
        )
    return predictions.reduced[metric.name]


def true_classes(predictions: Predictions) -> Bools:
    """Return multiclass or multilabel labels as a mask, (samples, classes).

    Raises DataError if labels have another shape or are out of range.
    """
    labels, count = predictions.labels, len(predictions.classes)
    if labels.ndim == 1:
        return one_hot(class_indices(predictions), count)
    if labels.shape[1:] != (count,):
        raise DataError(
            f"labels must be class indices (samples,), or 0 and 1 (samples, classes) for the {count} classes; got "
            f"{labels.shape}"
        )
    is_invalid = (labels < 0) | (labels > 1)  # False for NaN, which means unknown
    if is_invalid.any():
        sample, column = np.argwhere(is_invalid)[0]
        raise DataError(
            f"labels (samples, classes) must be 0 and 1, or NaN if unknown; got {np.nanmin(labels)} to "
            f"{np.nanmax(labels)}, such as {labels[sample, column]} of class {predictions.classes[column]!r} in row "
            f"{sample}; use MSE or R2 for numbers"
        )
    truth: Bools = labels > 0.5  # labels may be floats
    return truth


def class_indices(predictions: Predictions) -> NDArray[np.int64]:
    """Return multiclass labels as class indices, (samples,). Raises DataError if they are out of range."""
    labels, count = predictions.labels, len(predictions.classes)
    indices = labels.astype(np.int64)
    # A negative index would count from the last class.
    is_invalid = (indices != labels) | (indices < 0) | (indices >= count)
    if is_invalid.any():
        sample = int(is_invalid.argmax())
        raise DataError(
            f"labels (samples,) must be class indices from 0 to {count - 1}; got {labels.dtype} from "
            f"{labels.min()} to {labels.max()}, such as {labels[sample]} in row {sample}; leave out samples "
            "without a class, and use MSE or R2 for numbers"
        )
    return indices


def one_hot(indices: NDArray[Any], count: int) -> Bools:
    """Return class indices (samples,) as a mask (samples, count)."""
    # np.eye(count)[indices] would take gigabytes for tens of thousands of classes.
    mask: Bools = np.zeros((len(indices), count), dtype=bool)
    mask[np.arange(len(indices)), indices] = True
    return mask


def require_class_outputs(predictions: Predictions) -> None:
    """Raise DataError unless outputs have one column per class, or, per position, the shape of the labels.

    NaN is refused, because the largest of several outputs would be any of them; -inf, for masked classes, is not.
    """
    labels, outputs, count = predictions.labels, predictions.outputs, len(predictions.classes)
    if predictions.per_position:
        if outputs.shape != labels.shape:
            raise DataError(
                f"predictions per position must have a decision for each label; got labels {labels.shape} and outputs "
                f"{outputs.shape}; resize the outputs to the positions of the labels"
            )
    elif outputs.shape[1:] != (count,):
        raise DataError(
            f"metrics of classes take outputs (samples, classes) for the {count} classes; got {outputs.shape} with "
            f"labels {labels.shape}; pass the logits of all classes"
        )
    elif outputs.dtype.kind == "f" and (rows := int(np.isnan(outputs).any(1).sum())):
        raise DataError(f"outputs must be numbers; got NaN in {rows} of {len(outputs)} samples; did training diverge?")


def finite_outputs(predictions: Predictions) -> NDArray[Any]:
    """Return the outputs. Raises DataError unless they have one column per class and are finite."""
    require_class_outputs(predictions)
    if not np.isfinite(predictions.outputs).all():
        raise DataError("outputs must be finite numbers; got NaN or infinity; did training diverge?")
    return predictions.outputs


def row_blocks(shape: tuple[int, ...], numbers: int) -> Iterator[slice]:
    """Yield slices of the rows of an array with this shape, (rows, ...), with up to so many numbers each.

    An array without rows has one slice too.
    """
    size = max(1, numbers // max(1, math.prod(shape[1:])))
    for first in range(0, max(1, shape[0]), size):
        yield slice(first, first + size)


def log_softmax(outputs: NDArray[Any]) -> Floats:
    """Return log-probabilities, (samples, classes), for one class per sample."""
    logs: Floats = np.empty(outputs.shape)
    for rows in row_blocks(outputs.shape, _BLOCK):
        shifted = outputs[rows].astype(np.float64) - outputs[rows].max(1, keepdims=True)
        others = np.exp(shifted)
        # The largest probability of a sample is 1 / (1 + others). If its own 1 were in the sum, small others would be
        # lost in rounding, and samples with very high confidence would seem equal.
        others[np.arange(len(others)), outputs[rows].argmax(1)] = 0
        logs[rows] = shifted - np.log1p(others.sum(1, keepdims=True))
    return logs


def negated(outputs: NDArray[Any]) -> NDArray[Any]:
    """Return -outputs, in a dtype with negative numbers, so that sorting is descending."""
    negative: NDArray[Any] = -(outputs if outputs.dtype.kind == "f" else outputs.astype(np.float64))
    return negative


def unknown_labels(predictions: Predictions) -> Bools | None:
    """Return which labels are unknown, (samples, classes); None if all are known."""
    if predictions.labels.ndim != 2 or predictions.labels.dtype.kind != "f":
        return None
    is_unknown: Bools = np.isnan(predictions.labels)
    return is_unknown if is_unknown.any() else None


def known_rows(predictions: Predictions) -> list[NDArray[np.int64]]:
    """Return the rows of the samples with a known label for each class, (samples,) each."""
    is_unknown = unknown_labels(predictions)
    rows = np.arange(len(predictions))
    count = len(predictions.classes)
    return [rows] * count if is_unknown is None else [rows[~is_unknown[:, column]] for column in range(count)]


def defined_by_class(test: Predictions, values: NDArray[Any]) -> dict[str, float]:
    """Return values, (classes,), by class name, without NaN, which means undefined on this split."""
    return {name: float(value) for name, value in zip(test.classes, values, strict=True) if not math.isnan(value)}


def undefined_by_class(test: Predictions, resamples: int) -> Floats:
    """Return NaN for each class and resample, (classes, resamples), in an array that takes no memory."""
    return np.broadcast_to(np.float64("nan"), (len(test.classes), resamples))


def mean_over_classes(values: NDArray[Any]) -> Floats:
    """Return the mean over the classes with a value, (classes, resamples) -> (resamples,); NaN if there are none."""
    is_defined = ~np.isnan(values)
    totals = np.where(is_defined, values, 0.0).sum(0)
    counts = is_defined.sum(0)
    # nanmean would warn about empty slices.
    means: Floats = np.divide(totals, counts, out=np.full(len(totals), np.nan), where=counts > 0)
    return means


def is_share(metric: str, *values: float, lower_is_better: bool) -> bool:
    """Whether values of a metric are shares, so that differences are given in points of 0.01.

    Errors have a unit, such as that of the labels, even if they are below 1.
    """
    may_be_share = not lower_is_better or metric.startswith(_ERRORS_OF_SHARES)
    return may_be_share and all(not math.isfinite(value) or abs(value) <= 1 for value in values)


def ratio(part: Numbers, whole: Numbers) -> Floats:
    """Return part / whole elementwise; NaN if the whole is 0."""
    quotients: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return quotients


def note_on_missing(test: Predictions, present: Container[str], reason: str = "no positives") -> str:
    """Return a note with the reason and the names of missing classes; "" if all are present."""
    missing = [name for name in test.classes if name not in present]
    if len(missing) > _LISTED:  # for example most tokens of a vocabulary
        missing[_LISTED:] = [f"and {len(missing) - _LISTED} more"]
    return f"{reason}: {', '.join(missing)}" if missing else ""
