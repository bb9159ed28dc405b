"""The prediction for one record, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """The classes of a record, or its numbers if the network was trained for a regression.

    record: its path, or the name of an array. reason: why it could not be predicted, with the other fields empty; None
    if it was predicted.
    classes: names. probabilities: (classes,) float64, of all windows together. thresholds: (classes,) float64, the
    lowest probability for which a class is predicted, infinite if never; () if multiclass, because the largest
    probability decides.
    decisions: (classes,) bool. values: (numbers,) float64, of a regression, in the order of their names in `classes`;
    then probabilities and decisions are empty. windows: (windows, classes) float64, the probabilities or values of each
    window.
    combine: "mean", "max" or "centre", see `Predictor`. starts: of the windows, in seconds; negative if the record is
    shorter than a window, which is padded.
    seconds, rate: of the record, rate in Hz. derived: leads that were computed from two others. notes: what was
    assumed, such as a gain that the header lacks.
    """

    record: str
    reason: str | None = None
    classes: tuple[str, ...] = ()
    probabilities: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    thresholds: tuple[float, ...] = ()
    decisions: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    values: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    windows: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    combine: str = ""
    starts: tuple[float, ...] = ()
    seconds: float = 0.0
    rate: float = 0.0
    derived: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def predicted(self) -> tuple[str, ...]:
        """The names of the predicted classes."""
        return tuple(compress(self.classes, self.decisions))

    def by_class(self) -> dict[str, Mapping[str, Any]]:
        """Return for each class its probability, threshold (None if never or multiclass) and decision, or its value."""
        if len(self.values):
            values = zip(self.classes, self.values.tolist(), strict=True)
            return {name: {"value": _digits(value)} for name, value in values}
        thresholds = self.thresholds or (np.inf,) * len(self.classes)
        return {
            name: {
                "probability": _digits(probability),
                "threshold": _digits(threshold) if np.isfinite(threshold) else None,
                "decision": bool(decision),
            }
            for name, probability, threshold, decision in zip(
                self.classes, self.probabilities.tolist(), thresholds, self.decisions.tolist(), strict=True
            )
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as values for JSON."""
        if self.reason is not None:
            return {"record": self.record, "refused": self.reason}
        return {
            "record": self.record,
            "refused": None,
            "predicted": list(self.predicted),
            "classes": self.by_class(),
            "windows": [round(start, 3) for start in self.starts],
            f"window_{'values' if len(self.values) else 'probabilities'}": [
                [_digits(value) for value in row] for row in self.windows.tolist()
            ],
            "combine": self.combine,
            "seconds": round(self.seconds, 3),
            "rate": self.rate,
            "derived": list(self.derived),
            "notes": list(self.notes),
        }


def _digits(value: float) -> float:
    """Return a number with the digits that float32 has."""
    return float(f"{value:.7g}")
