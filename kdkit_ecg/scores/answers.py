"""What a net answers for a record, from its logits and thresholds, where the year's classes are asked for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import Predictions, RecipeError
from kdkit_ecg.labels import Year, scored_classes


def require_classes(predictions: Predictions, year: Year) -> None:
    """Raise RecipeError where the classes are not those of the year, in their order."""
    names = scored_classes(year).names
    if predictions.classes != names:
        raise RecipeError(
            f"ChallengeMetric({year}) scores {len(names)} classes, {', '.join(names)}, in this order, "
            f"but the data has {len(predictions.classes)}: {', '.join(predictions.classes)}"
        )


def sure_of_highest(outputs: NDArray[Any]) -> NDArray[np.float64]:
    """Return the logits with the greatest of each record infinite, so that it is answered at any threshold."""
    logits = np.array(outputs, dtype=np.float64)
    if len(logits):
        np.put_along_axis(logits, logits.argmax(axis=1, keepdims=True), np.inf, axis=1)
    return logits
