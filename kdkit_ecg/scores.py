"""The challenge metric of PhysioNet/CinC 2020 and 2021, and its thresholds."""

from dataclasses import KW_ONLY, dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kdkit import Predictions, RecipeError, Scored
from kdkit_ecg.labels import NORMAL, Year, scored_classes, table

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Even steps of the logit: a rare class may need a threshold far below 0.01. The middle one is 0.5.
CANDIDATES = tuple((1 / (1 + np.exp(-np.linspace(-7, 7, 141)))).tolist())
SWEEPS = 3  # over all classes; a fourth changes next to nothing


def challenge_metric(labels: NDArray[Any], outputs: NDArray[Any], year: Year) -> float:
    """Return the official score: 1 for all right, 0 for calling everybody normal, below 0 for worse.

    labels, outputs: (records, classes) of 0 and 1, classes in the order of scored_classes(year). An answer earns its
    weight in the table, shared among all classes that are true or answered in the record. 0.0 where being right
    scores no more than calling everybody normal. Source: Perez Alday et al. 2020; Reyna et al. 2021.
    """
    truth, answers = np.asarray(labels, dtype=bool), np.asarray(outputs, dtype=bool)
    inactive, right = _bounds(truth, year)
    if right == inactive:
        return 0.0
    return float((_credit(truth, answers, year) - inactive) / (right - inactive))


@dataclass(frozen=True, slots=True)
class ChallengeMetric:
    """The challenge metric of `year`, one probability threshold per class, fitted on the selection split.

    add_highest: the most probable class is always answered too, as LRH-Net's authors do.
    thresholds: probabilities, one per class; 0.5 everywhere until fitted.
    """

    year: Year = 2020
    _: KW_ONLY
    add_highest: bool = False
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        scored_classes(self.year)  # refuses a year without classes

    @property
    def name(self) -> str:
        """Its name in reports."""
        return "challenge_metric"

    def fit(self, select: Predictions) -> Self:
        """Return one with the thresholds that score best on `select`.

        First a common threshold for all classes, then each class in turn while the others stay, SWEEPS times; a
        threshold moves only where that gains something.
        """
        truth, probabilities = np.asarray(select.labels, dtype=bool), self._probabilities(select)
        common = max(CANDIDATES, key=lambda each: (_credit(truth, probabilities > each, self.year), -abs(each - 0.5)))
        thresholds = np.full(len(select.classes), common)
        for _ in range(SWEEPS):
            for column in range(len(thresholds)):
                thresholds[column] = _refined(truth, probabilities, thresholds, column, self.year)
        return replace(self, thresholds=tuple(thresholds.tolist()))

    def score(self, test: Predictions) -> Scored:
        """Return the metric; the note names classes without positives, and says where it is 0 by definition."""
        thresholds = self.thresholds or (0.5,) * len(test.classes)
        answers = self._probabilities(test) > np.array(thresholds)
        truth = np.asarray(test.labels, dtype=bool)
        without = [name for column, name in enumerate(test.classes) if not truth[:, column].any()]
        notes = [f"no positives: {', '.join(without)}"] if without else []
        inactive, right = _bounds(truth, self.year)
        if right == inactive:
            notes.append("0 by definition: calling everybody normal is already right")
        return Scored(value=challenge_metric(truth, answers, self.year), note="; ".join(notes))

    def _probabilities(self, predictions: Predictions) -> Floats:
        """Return (records, classes), above any threshold where the class is answered in any case."""
        names = scored_classes(self.year).names
        if predictions.classes != names:
            raise RecipeError(
                f"ChallengeMetric({self.year}) scores {len(names)} classes, {', '.join(names)}, in this order, "
                f"but the data has {len(predictions.classes)}: {', '.join(predictions.classes)}"
            )
        logits = np.asarray(predictions.outputs, dtype=np.float64)
        probabilities: Floats = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
        if self.add_highest and len(logits):
            np.put_along_axis(probabilities, logits.argmax(axis=1, keepdims=True), np.inf, axis=1)
        return probabilities


@cache
def _weights(year: Year) -> Floats:
    """Return (classes, classes): rows what is true, columns what is answered."""
    header, *rows = table("weights.csv")
    weights = np.array([[float(cell) for cell in row.split(",")] for row in rows])
    places = [header.split(",").index(_listed(code)) for code in scored_classes(year).codes]
    return weights[np.ix_(places, places)]


def _listed(code: str) -> str:
    """Return the code that stands for this one in the table of weights, that of 2021."""
    wide = scored_classes(2021)
    return wide.codes[wide.columns[code]]


def _credit(truth: Bools, answers: Bools, year: Year) -> float:
    """Return the sum of weights earned, each record's shared among its true or answered classes."""
    earned = ((truth @ _weights(year)) * answers).sum(axis=1)
    return float((earned / np.maximum(1, (truth | answers).sum(axis=1))).sum())


def _bounds(truth: Bools, year: Year) -> tuple[float, float]:
    """Return the credit for calling everybody normal, and for being right."""
    normal = np.zeros_like(truth)
    normal[:, scored_classes(year).codes.index(NORMAL)] = True
    return _credit(truth, normal, year), _credit(truth, truth, year)


def _refined(truth: Bools, probabilities: Floats, thresholds: Floats, column: int, year: Year) -> float:
    """Return the best threshold of one class while the others stay."""
    answers = probabilities > thresholds
    answers[:, column] = False
    worth = truth @ _weights(year)
    others = (worth * answers).sum(axis=1)
    counted = (truth | answers).sum(axis=1)
    without = others / np.maximum(1, counted)
    given = (others + worth[:, column]) / np.maximum(1, counted + ~truth[:, column])
    # Answering the class where its probability lies above candidate k gains the sum of all bins above k.
    bins = np.searchsorted(CANDIDATES, probabilities[:, column], side="left")
    binned = np.bincount(bins, weights=given - without, minlength=len(CANDIDATES) + 1)
    gains = np.cumsum(binned[::-1])[::-1][1:]
    now = np.searchsorted(CANDIDATES, thresholds[column])
    best = int(gains.argmax())
    return CANDIDATES[best] if gains[best] > gains[now] + 1e-9 else float(thresholds[column])
