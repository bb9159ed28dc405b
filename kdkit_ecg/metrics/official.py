"""The challenge metric of PhysioNet/CinC 2020 and 2021, and the other figures that the official scorers print.

A predicted class earns a reward for each true class, and more the more similar the treatments of the two are.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError, MetricResult, Predictions
from kdkit.metrics import MacroAUPRC, MacroAUROC
from kdkit.metrics.base import Bools, Floats, ratio
from kdkit_ecg.labels import NORMAL, Year, scored_classes, table

_CHUNK = 4096  # records whose arrays fit in a processor's cache: twice as fast as all records at once


def challenge_metric(labels: NDArray[Any], outputs: NDArray[Any], year: Year) -> float:
    """Return the official score: 1 for correct outputs, 0 for normal in every record, below 0 for worse.

    labels, outputs: (records, classes) of 0 and 1, classes in the order of scored_classes(year). The reward of a
    predicted class is divided by the number of classes that are true or predicted in the record. Returns 0.0 if correct
    outputs earn no more than normal in every record. Raises DataError for other shapes, and for numbers other than 0
    and 1, such as probabilities.
    Source: Perez Alday et al. 2020; Reyna et al. 2021.
    """
    truth, predicted = decisions("labels", labels, year), decisions("outputs", outputs, year)
    _require_same_records(truth, predicted)
    sums = np.zeros(3)
    for first in range(0, len(truth), _CHUNK):
        rows = slice(first, first + _CHUNK)
        rewards = Rewards(truth[rows], year)
        sums += rewards.observed(predicted[rows]).sum(), rewards.inactive.sum(), rewards.correct.sum()
    return float(normalised_score(*sums))


def decisions(name: str, values: NDArray[Any], year: Year) -> Bools:
    """Return 0 and 1 as a mask, (records, classes). Raises DataError with the name for other shapes or numbers."""
    array = np.asarray(values)
    count = len(scored_classes(year).names)
    if array.ndim != 2 or array.shape[1] != count:
        raise DataError(
            f"{name} are (records, {count}), with the columns of scored_classes({year}); got {array.shape}; pass a "
            "column for each of these classes, in their order"
        )
    # False for text and for NaN too
    is_decision = np.equal(array, 0) | np.equal(array, 1) if array.dtype.kind in "biuf" else np.zeros(array.shape, bool)
    if not is_decision.all():
        record, column = np.argwhere(~is_decision)[0]
        raise DataError(
            f"{name} are decisions, 0 and 1 or bool; got {array.item(record, column)!r} of class "
            f"{scored_classes(year).names[column]!r} in row {record}; "
            "turn probabilities into decisions first, such as probabilities >= 0.5"
        )
    return array.astype(bool, copy=False)


def _require_same_records(truth: Bools, predicted: Bools) -> None:
    if len(truth) != len(predicted):
        raise DataError(
            f"labels and outputs have a row for each record; got {len(truth)} and {len(predicted)} rows; pass the same "
            "records in the same order"
        )


def normalised_score(observed: Any, inactive: Any, correct: Any) -> Floats:
    """Return the score of summed rewards, elementwise: 0 for those of the inactive outputs, 1 for the correct ones."""
    span = np.asarray(correct - inactive)
    score: Floats = np.divide(observed - inactive, span, out=np.zeros(span.shape), where=span != 0)
    return score


class Rewards:
    """The rewards of outputs for records with these true classes, (records, classes)."""

    def __init__(self, truth: Bools, year: Year) -> None:
        self.truth = truth
        # (records, classes): the reward of predicting each class, before it is divided.
        self.by_class: Floats = truth.astype(np.float64) @ reward_matrix(year)
        self._normal = scored_classes(year).codes.index(NORMAL)

    def observed(self, predicted: Bools) -> Floats:
        """Return the reward of each record for these predicted classes, (records,)."""
        return _row_sums(self.by_class * predicted) / np.maximum(1, _row_sums(self.truth | predicted))

    @property
    def correct(self) -> Floats:
        """The reward of each record for its true classes, (records,)."""
        return self.observed(self.truth)

    @property
    def inactive(self) -> Floats:
        """The reward of each record for normal alone, (records,), the official scorer's inactive classifier."""
        return self.by_class[:, self._normal] / (_row_sums(self.truth) + ~self.truth[:, self._normal])


@cache
def reward_matrix(year: Year) -> Floats:
    """Return the rewards (classes, classes): a row for each true class, a column for each predicted one."""
    header, *rows = table("weights.csv")
    rewards = np.array([[float(reward) for reward in row.split(",")] for row in rows])
    # The table of 2021 merges some classes of 2020; it lists the code that stands for the merged class.
    merged = scored_classes(2021)
    listed = [merged.codes[merged.columns[code]] for code in scored_classes(year).codes]
    indices = [header.split(",").index(code) for code in listed]
    return rewards[np.ix_(indices, indices)]


def _row_sums(rows: NDArray[Any]) -> Floats:
    # For rows this short, a product with ones is five times as fast as a sum.
    sums: Floats = rows.astype(np.float64, copy=False) @ np.ones(rows.shape[1])
    return sums


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialFigures:
    """Figures as the official scorers define them; NaN if undefined, and then left out of a macro mean.

    accuracy: share of the records with every class correct.
    f_measure: macro mean of F1. Unlike in kdkit's F1, a class without positives counts as 0 once it is predicted.
    f2_measure, g2_measure: F-beta and G-beta of 2020 with beta 2; a record weighs 1 / max(1, its true classes).
    *_by_class: (classes,).
    modified_confusion: (classes, classes), a row for each true class; a record's counts are divided by the number of
    its classes that are true or predicted.
    """

    auroc: float
    auprc: float
    accuracy: float
    f_measure: float
    f2_measure: float
    g2_measure: float
    challenge_metric: float
    auroc_by_class: Floats
    auprc_by_class: Floats
    f_measure_by_class: Floats
    modified_confusion: Floats


def official_figures(
    labels: NDArray[Any], binary_outputs: NDArray[Any], outputs: NDArray[Any], year: Year
) -> OfficialFigures:
    """Return the figures; all (records, classes): labels and binary_outputs of 0 and 1, outputs any scores.

    Raises DataError for other shapes, and for labels or binary_outputs other than 0 and 1.
    """
    truth, predicted = decisions("labels", labels, year), decisions("binary_outputs", binary_outputs, year)
    _require_same_records(truth, predicted)
    test = Predictions(labels=truth, outputs=np.asarray(outputs), classes=scored_classes(year).names)
    auroc, auprc = MacroAUROC().compute(test), MacroAUPRC().compute(test)
    f1 = _f_measures(truth, predicted, np.ones(len(truth)), 1.0)
    weights = 1 / np.maximum(1, truth.sum(1))
    hits, extra, missed = _weighted_counts(truth, predicted, weights)
    inverse_sizes = 1 / np.maximum(1, (truth | predicted).sum(1))  # of the union of true and predicted classes
    return OfficialFigures(
        auroc=auroc.value,
        auprc=auprc.value,
        accuracy=float((truth == predicted).all(1).mean()) if len(truth) else float("nan"),
        f_measure=_macro_mean(f1),
        f2_measure=_macro_mean(_f_measures(truth, predicted, weights, 2.0)),
        g2_measure=_macro_mean(ratio(hits, hits + extra + 2 * missed)),
        challenge_metric=challenge_metric(truth, predicted, year),
        auroc_by_class=_by_class(auroc, test),
        auprc_by_class=_by_class(auprc, test),
        f_measure_by_class=f1,
        modified_confusion=truth.T.astype(np.float64) @ (predicted * inverse_sizes[:, None]),
    )


def _f_measures(truth: Bools, predicted: Bools, weights: Floats, beta: float) -> Floats:
    """Return F-beta by class, (classes,); weights: of each record."""
    hits, extra, missed = _weighted_counts(truth, predicted, weights)
    return ratio((1 + beta**2) * hits, (1 + beta**2) * hits + extra + beta**2 * missed)


def _weighted_counts(truth: Bools, predicted: Bools, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return true positives, false positives and false negatives by class, (classes,) each; weights: of each record."""
    return weights @ (truth & predicted), weights @ (predicted & ~truth), weights @ (truth & ~predicted)


def _macro_mean(by_class: Floats) -> float:
    """Return the mean over the classes that are not NaN; NaN if there are none."""
    defined = by_class[~np.isnan(by_class)]
    return float(defined.mean()) if len(defined) else float("nan")


def _by_class(result: MetricResult, test: Predictions) -> Floats:
    return np.array([result.by_class.get(name, np.nan) for name in test.classes])
