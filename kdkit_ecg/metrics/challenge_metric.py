"""The challenge metric as a metric of a run: thresholds chosen on the validation split, the score on the test split."""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kdkit import MetricResult, Predictions, RecipeError
from kdkit.metrics import Resampled, Thresholds
from kdkit.metrics.base import Bools, Floats, require_class_outputs
from kdkit.metrics.thresholds import thresholds_array
from kdkit.utils.validation import validate_switches
from kdkit_ecg.labels import Year, scored_classes
from kdkit_ecg.metrics.official import Rewards, decisions, normalised_score

# Candidate thresholds in even steps of the logit, because a rare class may need one far below a probability of 0.01.
CANDIDATES = np.linspace(-7, 7, 141)  # the middle one is 0, a probability of one half
SWEEPS = 3  # over all classes; a fourth changes next to nothing
SMALLEST_GAIN = 1e-9  # a threshold must gain more than rounding to move


@dataclass(frozen=True, slots=True)
class ChallengeMetric:
    """The challenge metric of `year`, with thresholds that `fit` chooses on the validation split.

    add_highest: always predict the most probable class too, as LRH-Net's authors do.
    thresholds: logits, one per class; a class is predicted from its threshold on. 0 (a probability of one half) until
    fitted.
    thresholds_by: how to choose them; by default those with the best metric, BestChallengeMetric(year).
    Raises RecipeError for a year without a challenge, and for data whose classes are not those of the year.
    """

    year: Year = 2020
    _: KW_ONLY
    add_highest: bool = False
    thresholds: tuple[float, ...] = ()
    thresholds_by: Thresholds | None = None

    def __post_init__(self) -> None:
        scored_classes(self.year)  # raises RecipeError for a year without a challenge
        validate_switches(add_highest=self.add_highest)

    @property
    def name(self) -> str:
        """The name in reports."""
        return "challenge_metric" if self.thresholds_by is None else f"challenge_metric_{self.thresholds_by.name}"

    def fit(self, validation: Predictions) -> Self:
        """Return a copy with thresholds that are chosen on the validation split."""
        require_classes(validation, self.year)
        chooser = self.thresholds_by or BestChallengeMetric(self.year, add_highest=self.add_highest)
        return replace(self, thresholds=chooser.choose(validation))

    def compute(self, test: Predictions) -> MetricResult:
        """Return the metric; the note names classes without positives, and a metric that is 0 by definition."""
        rewards = self._rewards(test)
        absent = [name for column, name in enumerate(test.classes) if not rewards.truth[:, column].any()]
        notes = [f"no positives: {', '.join(absent)}"] if absent else []
        observed = rewards.observed(self._decide(test)).sum()
        inactive, correct = rewards.inactive.sum(), rewards.correct.sum()
        if correct == inactive:
            notes.append("0 by definition: predicting normal for every record is already correct")
        return MetricResult(value=float(normalised_score(observed, inactive, correct)), note="; ".join(notes))

    def resampled(self, test: Predictions, counts: NDArray[np.float32]) -> Resampled:
        """Return the metric of each resample; counts: how often each record is in it, (records, resamples)."""
        rewards = self._rewards(test)
        per_record = np.stack([rewards.observed(self._decide(test)), rewards.inactive, rewards.correct])  # (3, records)
        values = normalised_score(*(per_record @ counts))
        # The metric is not a mean over classes, so it has no values by class.
        return Resampled(values, np.full((len(test.classes), len(values)), np.nan))

    def _rewards(self, test: Predictions) -> Rewards:
        require_classes(test, self.year)
        return Rewards(decisions("labels", test.labels, self.year), self.year)

    def _decide(self, test: Predictions) -> Bools:
        logits = decision_logits(test.outputs, add_highest=self.add_highest)
        predicted: Bools = logits >= thresholds_array(self.thresholds, test)
        return predicted


@dataclass(frozen=True, slots=True)
class BestChallengeMetric:
    """The thresholds with the best challenge metric of `year`, searched jointly because classes share the reward.

    The search starts from the best common threshold. It then changes one class at a time and keeps the others, in
    SWEEPS passes over all classes.
    add_highest: the value of the ChallengeMetric that uses the thresholds.
    """

    year: Year = 2020
    _: KW_ONLY
    add_highest: bool = False

    def __post_init__(self) -> None:
        validate_switches(add_highest=self.add_highest)

    @property
    def name(self) -> str:
        """The name in the name of a metric."""
        return "best_challenge_metric"

    def choose(self, validation: Predictions) -> tuple[float, ...]:
        """Return a logit for each class. Raises RecipeError if the classes are not those of the year."""
        require_classes(validation, self.year)
        logits = decision_logits(validation.outputs, add_highest=self.add_highest)
        rewards = Rewards(decisions("labels", validation.labels, self.year), self.year)
        # Of equally good thresholds, the one closest to 0.
        common = max(CANDIDATES, key=lambda logit: (rewards.observed(logits >= logit).sum(), -abs(logit)))
        thresholds = np.full(len(validation.classes), common)
        for _ in range(SWEEPS):
            for column in range(len(thresholds)):
                thresholds[column] = best_threshold(rewards, logits, thresholds, column)
        return tuple(thresholds.tolist())


def best_threshold(rewards: Rewards, logits: Floats, thresholds: Floats, column: int) -> float:
    """Return the best threshold of one class, with those of the others fixed."""
    decisions = logits >= thresholds
    decisions[:, column] = False
    truth = rewards.truth
    # The reward of each record without and with the class predicted, both (records,).
    reward = (rewards.by_class * decisions).sum(axis=1)
    classes = (truth | decisions).sum(axis=1)
    without = reward / np.maximum(1, classes)
    with_class = (reward + rewards.by_class[:, column]) / np.maximum(1, classes + ~truth[:, column])
    # Candidate k predicts the class for all records whose logit reaches it, which are those in all bins from k on.
    bins = np.searchsorted(CANDIDATES, logits[:, column], side="right")
    gains_in_bin = np.bincount(bins, weights=with_class - without, minlength=len(CANDIDATES) + 1)
    gains = np.cumsum(gains_in_bin[::-1])[::-1][1:]
    current = np.searchsorted(CANDIDATES, thresholds[column])
    best = int(gains.argmax())
    return float(CANDIDATES[best]) if gains[best] > gains[current] + SMALLEST_GAIN else float(thresholds[column])


def decision_logits(outputs: NDArray[Any], *, add_highest: bool) -> Floats:
    """Return the logits for thresholds. add_highest: the highest of each record is infinite, so above any threshold."""
    logits = np.array(outputs, dtype=np.float64)
    if add_highest and len(logits):
        np.put_along_axis(logits, logits.argmax(axis=1, keepdims=True), np.inf, axis=1)
    return logits


def require_classes(predictions: Predictions, year: Year) -> None:
    """Raise RecipeError unless the classes are those of the year, in order; DataError unless each has an output."""
    names = scored_classes(year).names
    if predictions.classes != names:
        raise RecipeError(
            f"ChallengeMetric({year}) scores {len(names)} classes, {', '.join(names)}, in this order, "
            f"but the data has {len(predictions.classes)}: {', '.join(predictions.classes)}"
        )
    require_class_outputs(predictions)
