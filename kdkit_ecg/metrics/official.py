"""The challenge metric of PhysioNet/CinC 2020 and 2021: answers weighed by how alike the treatment would be."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import MetricResult, Predictions
from kdkit.metrics import MacroAUPRC, MacroAUROC
from kdkit_ecg.labels import NORMAL, Year, scored_classes, table

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_AT_ONCE = 4096  # records whose tables stay in a processor's cache: twice as fast as all at once


def challenge_metric(labels: NDArray[Any], outputs: NDArray[Any], year: Year) -> float:
    """Return the official score: 1 for all right, 0 for calling everybody normal, below 0 for worse.

    labels, outputs: (records, classes) of 0 and 1, classes in the order of scored_classes(year). An answer earns its
    weight in the table, shared among all classes that are true or answered in the record. 0.0 where being right
    scores no more than calling everybody normal. Source: Perez Alday et al. 2020; Reyna et al. 2021.
    """
    truth, answers = np.asarray(labels, dtype=bool), np.asarray(outputs, dtype=bool)
    sums = np.zeros(3)
    for first in range(0, len(truth), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        worth = Worth(truth[rows], year)
        sums += worth.earned(answers[rows]).sum(), worth.inactive.sum(), worth.right.sum()
    return float(scaled(*sums))


def scaled(earned: Any, inactive: Any, right: Any) -> Floats:
    """Return sums of what was earned as the metric, elementwise: 0 for calling everybody normal, 1 for being right."""
    span = np.asarray(right - inactive)
    metric: Floats = np.divide(earned - inactive, span, out=np.zeros(span.shape), where=span != 0)
    return metric


class Worth:
    """What answers to records would earn. truth: (records, classes)."""

    def __init__(self, truth: Bools, year: Year) -> None:
        self.truth = truth
        self.by_class: Floats = truth.astype(np.float64) @ weights(year)  # what each answer earns before it is shared
        self._normal = scored_classes(year).codes.index(NORMAL)

    def earned(self, answers: Bools) -> Floats:
        """Return what each record earns, shared among its true or answered classes, (records,)."""
        return _row_sums(self.by_class * answers) / np.maximum(1, _row_sums(self.truth | answers))

    @property
    def right(self) -> Floats:
        """What each record earns when its answers are right, (records,)."""
        return self.earned(self.truth)

    @property
    def inactive(self) -> Floats:
        """What each record earns when everybody is called normal, (records,)."""
        return self.by_class[:, self._normal] / (_row_sums(self.truth) + ~self.truth[:, self._normal])


@cache
def weights(year: Year) -> Floats:
    """Return (classes, classes): rows what is true, columns what is answered."""
    header, *rows = table("weights.csv")
    figures = np.array([[float(trial) for trial in row.split(",")] for row in rows])
    places = [header.split(",").index(_listed(code)) for code in scored_classes(year).codes]
    return figures[np.ix_(places, places)]


def _listed(code: str) -> str:
    """Return the code that stands for this one in the table of weights, that of 2021."""
    wide = scored_classes(2021)
    return wide.codes[wide.columns[code]]


def _row_sums(table: NDArray[Any]) -> Floats:
    """Return the sum of each row; along rows this short a product with ones is five times as fast as sum."""
    sums: Floats = table.astype(np.float64, copy=False) @ np.ones(table.shape[1])
    return sums


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialFigures:
    """Figures as the official scorers define them; NaN where one is undefined, which a macro mean leaves out.

    accuracy: share of the records with every class right. f_measure: the macro mean of F1, in which, other than in
    kdkit's F1, a class without positives counts as 0 once it is answered. f2_measure, g2_measure: F-beta and G-beta of
    2020, beta 2, each record weighing 1 / max(1, its true classes). *_by_class: (classes,). modified_confusion:
    (classes, classes), rows what is true; each record's ones are shared among its true or answered classes.
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


def official_figures(labels: NDArray[Any], answers: NDArray[Any], outputs: NDArray[Any], year: Year) -> OfficialFigures:
    """Return the figures; labels and answers (records, classes) of 0 and 1, outputs (records, classes) any scores."""
    truth, said = np.asarray(labels, dtype=bool), np.asarray(answers, dtype=bool)
    test = Predictions(labels=truth, outputs=np.asarray(outputs), classes=scored_classes(year).names)
    auroc, auprc = MacroAUROC().compute(test), MacroAUPRC().compute(test)
    f1 = _f_measures(truth, said, np.ones(len(truth)), 1.0)
    shares = 1 / np.maximum(1, truth.sum(1))
    hits, extra, missed = _errors(truth, said, shares)
    both = 1 / np.maximum(1, (truth | said).sum(1))
    return OfficialFigures(
        auroc=auroc.value,
        auprc=auprc.value,
        accuracy=float((truth == said).all(1).mean()) if len(truth) else float("nan"),
        f_measure=_mean(f1),
        f2_measure=_mean(_f_measures(truth, said, shares, 2.0)),
        g2_measure=_mean(_over(hits, hits + extra + 2 * missed)),
        challenge_metric=challenge_metric(truth, said, year),
        auroc_by_class=_row(auroc, test),
        auprc_by_class=_row(auprc, test),
        f_measure_by_class=f1,
        modified_confusion=truth.T.astype(np.float64) @ (said * both[:, None]),
    )


def _f_measures(truth: Bools, said: Bools, shares: Floats, beta: float) -> Floats:
    """Return F-beta by class, (classes,), each record weighing its share."""
    hits, extra, missed = _errors(truth, said, shares)
    return _over((1 + beta**2) * hits, (1 + beta**2) * hits + extra + beta**2 * missed)


def _errors(truth: Bools, said: Bools, shares: Floats) -> tuple[Floats, Floats, Floats]:
    """Return true positives, false positives and false negatives by class, (classes,), each record by its share."""
    return shares @ (truth & said), shares @ (said & ~truth), shares @ (truth & ~said)


def _over(part: Floats, whole: Floats) -> Floats:
    shares: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares


def _mean(figures: Floats) -> float:
    known = figures[~np.isnan(figures)]
    return float(known.mean()) if len(known) else float("nan")


def _row(compute_metrics: MetricResult, test: Predictions) -> Floats:
    return np.array([compute_metrics.by_class.get(name, np.nan) for name in test.classes])
