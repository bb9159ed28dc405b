"""What a net answers for a record, from its logits and thresholds, where the year's classes are asked for."""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kdkit import MetricResult, Predictions, RecipeError
from kdkit.metrics import Resampled, Thresholds
from kdkit_ecg.labels import Year, scored_classes
from kdkit_ecg.metrics.official import Bools, Floats, Worth, scaled


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


@dataclass(frozen=True, slots=True)
class ChallengeMetric:
    """The challenge metric of `year`, with thresholds that `fit` chooses on the selection split.

    add_highest: the most probable class is always answered too, as LRH-Net's authors do.
    thresholds: logits, one per class, at or above which it is answered; 0 (a probability of one half) until fitted.
    thresholds_by: how they are chosen; None for those with the best metric, BestChallengeMetric(year).
    """

    year: Year = 2020
    _: KW_ONLY
    add_highest: bool = False
    thresholds: tuple[float, ...] = ()
    thresholds_by: Thresholds | None = None

    def __post_init__(self) -> None:
        scored_classes(self.year)  # refuses a year without classes

    @property
    def name(self) -> str:
        """Its name in reports."""
        return "challenge_metric" if self.thresholds_by is None else f"challenge_metric_{self.thresholds_by.name}"

    def fit(self, validation: Predictions) -> Self:
        """Return one with the thresholds that are chosen on `select`."""
        require_classes(validation, self.year)
        chooser = self.thresholds_by or BestChallengeMetric(self.year, add_highest=self.add_highest)
        return replace(self, thresholds=chooser.choose(validation))

    def compute(self, test: Predictions) -> MetricResult:
        """Return the metric; the note names classes without positives, and says where it is 0 by definition."""
        worth = self._worth(test)
        without = [name for column, name in enumerate(test.classes) if not worth.truth[:, column].any()]
        notes = [f"no positives: {', '.join(without)}"] if without else []
        earned = worth.earned(self._answers(test)).sum()
        inactive, right = worth.inactive.sum(), worth.right.sum()
        if right == inactive:
            notes.append("0 by definition: calling everybody normal is already right")
        return MetricResult(value=float(scaled(earned, inactive, right)), note="; ".join(notes))

    def resampled(self, test: Predictions, counts: NDArray[np.float32]) -> Resampled:
        """Return the metric of each resample; counts: how often each record is in it, (records, resamples)."""
        worth = self._worth(test)
        credits = np.stack([worth.earned(self._answers(test)), worth.inactive, worth.right])
        values = scaled(*(credits @ counts))
        return Resampled(values, np.full((len(test.classes), len(values)), np.nan))

    def _worth(self, test: Predictions) -> Worth:
        require_classes(test, self.year)
        return Worth(np.asarray(test.labels, dtype=bool), self.year)

    def _answers(self, test: Predictions) -> Bools:
        logits: NDArray[Any] = sure_of_highest(test.outputs) if self.add_highest else test.outputs
        answers: Bools = logits >= np.asarray(self.thresholds or 0.0)
        return answers


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

    def choose(self, validation: Predictions) -> tuple[float, ...]:
        """Return a logit for each class. Raises RecipeError where the classes are not those of the year."""
        require_classes(validation, self.year)
        logits = (
            sure_of_highest(validation.outputs)
            if self.add_highest
            else np.asarray(validation.outputs, dtype=np.float64)
        )
        worth = Worth(np.asarray(validation.labels, dtype=bool), self.year)
        common = max(CANDIDATES, key=lambda each: (worth.earned(logits >= each).sum(), -abs(each)))
        thresholds = np.full(len(validation.classes), common)
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
