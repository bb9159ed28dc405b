"""Thresholds that are chosen together, for the best challenge metric."""

from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import NDArray

from kdkit import Predictions
from kdkit_ecg.labels import Year
from kdkit_ecg.scores.answers import require_classes, sure_of_highest
from kdkit_ecg.scores.metric import Floats, Worth

# Even steps of the logit: a rare class may need a threshold far below a probability of 0.01. The middle one is 0.5.
CANDIDATES = np.linspace(-7, 7, 141)
SWEEPS = 3  # over all classes; a fourth changes next to nothing


@dataclass(frozen=True, slots=True)
class BestChallengeMetric:
    """The thresholds with the best challenge metric of `year`: a search over all classes, since classes share credit.

    First a common threshold for all classes, then each class in turn while the others stay, SWEEPS times; a threshold
    moves only where that gains something.
    add_highest: as the ChallengeMetric that uses them has it.
    """

    year: Year = 2020
    _: KW_ONLY
    add_highest: bool = False

    @property
    def name(self) -> str:
        """The name in a score's name."""
        return "best_challenge_metric"

    def choose(self, select: Predictions) -> tuple[float, ...]:
        """Return a logit for each class. Raises RecipeError where the classes are not those of the year."""
        require_classes(select, self.year)
        logits = sure_of_highest(select.outputs) if self.add_highest else np.asarray(select.outputs, dtype=np.float64)
        worth = Worth(np.asarray(select.labels, dtype=bool), self.year)
        common = max(CANDIDATES, key=lambda each: (worth.earned(logits >= each).sum(), -abs(each)))
        thresholds = np.full(len(select.classes), common)
        for _ in range(SWEEPS):
            for column in range(len(thresholds)):
                thresholds[column] = _refined(worth, logits, thresholds, column)
        return tuple(thresholds.tolist())


def _refined(worth: Worth, logits: Floats, thresholds: NDArray[np.float64], column: int) -> float:
    """Return the best threshold of one class while the others stay."""
    answers = logits >= thresholds
    answers[:, column] = False
    truth = worth.truth
    others = (worth.by_class * answers).sum(axis=1)
    counted = (truth | answers).sum(axis=1)
    without = others / np.maximum(1, counted)
    given = (others + worth.by_class[:, column]) / np.maximum(1, counted + ~truth[:, column])
    # Answering the class where its logit reaches candidate k gains the sum of all bins from k on.
    bins = np.searchsorted(CANDIDATES, logits[:, column], side="right")
    binned = np.bincount(bins, weights=given - without, minlength=len(CANDIDATES) + 1)
    gains = np.cumsum(binned[::-1])[::-1][1:]
    now = np.searchsorted(CANDIDATES, thresholds[column])
    best = int(gains.argmax())
    return float(CANDIDATES[best]) if gains[best] > gains[now] + 1e-9 else float(thresholds[column])
