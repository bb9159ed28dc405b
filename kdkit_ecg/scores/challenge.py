"""The challenge metric as a score of a recipe."""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kdkit import Predictions, Resampled, Scored, Thresholds
from kdkit_ecg.labels import Year, scored_classes
from kdkit_ecg.scores.answers import require_classes, sure_of_highest
from kdkit_ecg.scores.metric import Bools, Worth, scaled
from kdkit_ecg.scores.thresholds import BestChallengeMetric


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

    def fit(self, select: Predictions) -> Self:
        """Return one with the thresholds that are chosen on `select`."""
        require_classes(select, self.year)
        chooser = self.thresholds_by or BestChallengeMetric(self.year, add_highest=self.add_highest)
        return replace(self, thresholds=chooser.choose(select))

    def score(self, test: Predictions) -> Scored:
        """Return the metric; the note names classes without positives, and says where it is 0 by definition."""
        worth = self._worth(test)
        without = [name for column, name in enumerate(test.classes) if not worth.truth[:, column].any()]
        notes = [f"no positives: {', '.join(without)}"] if without else []
        earned = worth.earned(self._answers(test)).sum()
        inactive, right = worth.inactive.sum(), worth.right.sum()
        if right == inactive:
            notes.append("0 by definition: calling everybody normal is already right")
        return Scored(value=float(scaled(earned, inactive, right)), note="; ".join(notes))

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
