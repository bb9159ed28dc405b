"""Turn logits into predicted classes with a threshold for each class, chosen on the validation split."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kdkit.errors import DataError, RecipeError, describe
from kdkit.metrics.base import Floats, Predictions, known_rows, negated, require_class_outputs, true_classes
from kdkit.utils.reprs import describe_names
from kdkit.utils.validation import is_number

# (hits (samples,), predicted (samples,), positives, samples) -> the criterion at each cut, (samples,)
Criterion = Callable[[Floats, Floats, float, int], Floats]


@runtime_checkable
class Thresholds(Protocol):
    """A rule that chooses thresholds. A class is predicted if its logit is at least its threshold."""

    @property
    def name(self) -> str:
        """The suffix of the name of a metric that uses the rule."""
        ...

    def choose(self, validation: Predictions) -> tuple[float, ...]:
        """Return a threshold for each class, chosen on the validation split."""
        ...


@dataclass(frozen=True, slots=True)
class BestF1:
    """For each class, the threshold with the best F1."""

    name = "best_f1"

    def choose(self, validation: Predictions) -> tuple[float, ...]:
        """Return the thresholds. A class without positives has infinity, so it is never predicted."""
        return _choose_by_class(best_f1_threshold, validation)


@dataclass(frozen=True, slots=True)
class YoudenJ:
    """For each class, the threshold with the largest J = sensitivity + specificity - 1 (Youden 1950)."""

    name = "youden_j"

    def choose(self, validation: Predictions) -> tuple[float, ...]:
        """Return the thresholds. A class without positives has infinity, one without negatives its smallest output."""
        return _choose_by_class(best_j_threshold, validation)


@dataclass(frozen=True, slots=True)
class MinimumSensitivity:
    """For each class, the largest threshold at which at least this share of the positives is found, in (0, 1].

    The sensitivity, which is also called recall, is that on the validation split; on others, it may be lower.
    """

    sensitivity: float = 0.95

    def __post_init__(self) -> None:
        if not is_number(self.sensitivity) or not 0 < self.sensitivity <= 1:
            raise RecipeError(f"sensitivity must be a number above 0 and at most 1, got {self.sensitivity!r}")

    @property
    def name(self) -> str:
        """The suffix of the name of a metric that uses the rule, such as sensitivity_95."""
        return f"sensitivity_{100 * self.sensitivity:g}"

    def choose(self, validation: Predictions) -> tuple[float, ...]:
        """Return the thresholds. A class without positives has infinity, so it is never predicted."""

        def fewest_predicted(hits: Floats, predicted: Floats, positives: float, _: int) -> Floats:
            return np.where(hits >= self.sensitivity * positives - 1e-9, -predicted, -np.inf)

        return _choose_by_class(lambda labels, outputs: _best_threshold(labels, outputs, fewest_predicted), validation)


@dataclass(frozen=True, slots=True)
class FixedThresholds:
    """Fixed thresholds: one logit for all classes, by default 0, which is a probability of one half, or one per class.

    They are in the order of the data's classes, even if a network has another order, `Net(classes=)`.
    """

    logits: float | Sequence[float] = 0.0

    name = "fixed"

    def choose(self, validation: Predictions) -> tuple[float, ...]:
        """Return one threshold per class. Raises RecipeError if their number is not the number of classes."""
        if not isinstance(self.logits, Sequence):
            return (float(self.logits),) * len(validation.classes)
        if len(self.logits) != len(validation.classes):
            raise RecipeError(
                f"FixedThresholds has {len(self.logits)} thresholds for {len(validation.classes)} classes "
                f"({describe_names(validation.classes)}); pass one per class, in this order, or one number for all"
            )
        return tuple(self.logits)


def validate_thresholds(thresholds_by: object) -> None:
    """Raise RecipeError unless the object is a rule that chooses thresholds."""
    # A class also has name and choose, so isinstance would accept the class itself.
    if isinstance(thresholds_by, type) or not isinstance(thresholds_by, Thresholds):
        raise RecipeError(
            "thresholds_by must be a rule that chooses thresholds, such as BestF1() or YoudenJ(); got "
            f"{describe(thresholds_by)}"
        )


def thresholds_array(thresholds: tuple[float, ...] | None, predictions: Predictions) -> Floats:
    """Return one threshold per class, (classes,), by default 0. Raises RecipeError for another number of thresholds."""
    count = len(predictions.classes)
    if thresholds and len(thresholds) != count:
        raise RecipeError(
            f"a metric must have one threshold per class; got {len(thresholds)} for {count} classes; fit it on the "
            "validation split of this data"
        )
    return np.array(thresholds or (0.0,) * count, dtype=np.float64)


def best_f1_threshold(labels: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Return the threshold with the best F1 for one class. labels, outputs: (samples,).

    It lies midway between two outputs. Without positives it is infinity, so the class is never predicted.
    """
    return _best_threshold(labels, outputs, lambda hits, predicted, positives, _: 2 * hits / (predicted + positives))


def best_j_threshold(labels: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Return the threshold with the largest J for one class. labels, outputs: (samples,).

    It lies midway between two outputs. Without positives it is infinity, so the class is never predicted.
    """

    def youden_j(hits: Floats, predicted: Floats, positives: float, samples: int) -> Floats:
        # Without negatives, there are no false positives, so their rate is 0 / 1.
        return hits / positives - (predicted - hits) / max(1.0, samples - positives)

    return _best_threshold(labels, outputs, youden_j)


def _best_threshold(labels: NDArray[Any], outputs: NDArray[Any], criterion: Criterion) -> float:
    """Sort the outputs in descending order, and cut after the sample with the largest value of the criterion."""
    if labels.ndim != 1 or labels.shape != outputs.shape:
        raise DataError(
            f"a threshold is chosen for one class, from labels and outputs (samples,); got {labels.shape} and "
            f"{outputs.shape}; choose one per column, as BestF1() does"
        )
    positives = float(labels.sum())
    if not positives:
        return float("inf")
    order = np.argsort(negated(outputs), kind="stable")
    ranked = outputs[order].astype(np.float64)
    hits = np.cumsum(labels[order], dtype=np.float64)  # true positives if the cut is after each sample
    values = criterion(hits, np.arange(1.0, len(ranked) + 1), positives, len(ranked))
    values[:-1][ranked[:-1] == ranked[1:]] = -np.inf  # no threshold separates equal outputs
    last = int(values.argmax())
    lowest = float(ranked[last])
    if last + 1 == len(ranked):  # there is no next output: the class is predicted for every sample
        return lowest
    middle = (lowest + float(ranked[last + 1])) / 2
    return middle if math.isfinite(middle) else lowest  # an output may be infinite


def _choose_by_class(
    threshold: Callable[[NDArray[Any], NDArray[Any]], float], validation: Predictions
) -> tuple[float, ...]:
    require_class_outputs(validation)
    truth = true_classes(validation)  # labels may be mixed
    if validation.labels.ndim != 2:
        raise DataError(
            f"thresholds are for several labels per sample, (samples, classes); got labels {validation.labels.shape}; "
            "with one class per sample, the class with the largest output is predicted"
        )
    return tuple(
        threshold(truth[rows, column], validation.outputs[rows, column])
        for column, rows in enumerate(known_rows(validation))
    )
