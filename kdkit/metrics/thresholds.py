"""How outputs become answers: a threshold for each class, chosen on the selection split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kdkit.errors import RecipeError
from kdkit.metrics.base import Floats, Predictions

# (hits (n,), said (n,), positives, samples) -> how good each cut is.
Merit = Callable[[Floats, Floats, float, int], Floats]


@runtime_checkable
class Thresholds(Protocol):
    """A way to choose thresholds. A class is said where its output, a logit, is at least its threshold."""

    @property
    def name(self) -> str:
        """What a score that uses it adds to its name."""
        ...

    def choose(self, validation: Predictions) -> tuple[float, ...]:
        """Return a threshold for each class, from the selection split."""
        ...


def require_thresholds(given: object) -> None:
    """Raise RecipeError where this is no way to choose thresholds."""
    if isinstance(given, type) or not isinstance(given, Thresholds):
        raise RecipeError(f"thresholds_by is a way to choose thresholds, such as BestF1() or YoudenJ(); got {given!r}")


@dataclass(frozen=True, slots=True)
class BestF1:
    """For each class the threshold with its best F1."""

    @property
    def name(self) -> str:
        """The name in a score's name."""
        return "best_f1"

    def choose(self, validation: Predictions) -> tuple[float, ...]:
        """Return the thresholds; a class without positives is never said."""
        return _by_class(best_f1_threshold, validation)


@dataclass(frozen=True, slots=True)
class YoudenJ:
    """For each class the threshold with the greatest J = sensitivity + specificity - 1 (Youden 1950)."""

    @property
    def name(self) -> str:
        """The name in a score's name."""
        return "youden_j"

    def choose(self, validation: Predictions) -> tuple[float, ...]:
        """Return the thresholds; a class without positives is never said, one without negatives always."""
        return _by_class(best_j_threshold, validation)


@dataclass(frozen=True, slots=True)
class FixedThresholds:
    """Thresholds that nothing is chosen for: a logit for all classes (0: a probability of one half) or one each."""

    logits: float | tuple[float, ...] = 0.0

    @property
    def name(self) -> str:
        """The name in a score's name."""
        return "fixed"

    def choose(self, validation: Predictions) -> tuple[float, ...]:
        """Return them, one per class. Raises RecipeError where there are not as many as classes."""
        if not isinstance(self.logits, tuple):
            return (float(self.logits),) * len(validation.classes)
        if len(self.logits) != len(validation.classes):
            raise RecipeError(
                f"FixedThresholds has {len(self.logits)} thresholds for {len(validation.classes)} classes; give one per "
                "class, or one number for all"
            )
        return self.logits


def best_f1_threshold(labels: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Return the output at or above which saying a class gives the best F1; labels and outputs (n,).

    Between two outputs the middle is taken. Without a positive the class is never said: infinity.
    """
    return _best_cut(labels, outputs, lambda hits, said, positives, _: 2 * hits / (said + positives))


def best_j_threshold(labels: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Return the output at or above which saying a class gives the greatest J; labels and outputs (n,).

    Between two outputs the middle is taken. Without a positive the class is never said: infinity.
    """

    def j(hits: Floats, said: Floats, positives: float, samples: int) -> Floats:
        return hits / positives - (said - hits) / max(1.0, samples - positives)

    return _best_cut(labels, outputs, j)


def _best_cut(labels: NDArray[Any], outputs: NDArray[Any], merit: Merit) -> float:
    positives = float(labels.sum())
    if not positives:
        return float("inf")
    order = np.argsort(-outputs, kind="stable")
    ranked = outputs[order].astype(np.float64)
    hits = np.cumsum(labels[order], dtype=np.float64)
    merits = merit(hits, np.arange(1.0, len(ranked) + 1), positives, len(ranked))
    merits[:-1][ranked[:-1] == ranked[1:]] = -np.inf  # equal outputs are said together
    last = int(merits.argmax())
    return float((ranked[last] + ranked[last + 1]) / 2) if last + 1 < len(ranked) else float(ranked[last])


def _by_class(threshold: Callable[[NDArray[Any], NDArray[Any]], float], validation: Predictions) -> tuple[float, ...]:
    return tuple(
        threshold(validation.labels[:, column], validation.outputs[:, column])
        for column in range(len(validation.classes))
    )
