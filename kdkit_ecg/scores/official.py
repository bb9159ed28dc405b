"""All that the official scorers of 2020 and 2021 print, so that figures can be held beside theirs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import MacroAUPRC, MacroAUROC, Predictions, Scored
from kdkit_ecg.labels import Year, scored_classes
from kdkit_ecg.scores.metric import Bools, Floats, challenge_metric


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
    auroc, auprc = MacroAUROC().score(test), MacroAUPRC().score(test)
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


def _row(scored: Scored, test: Predictions) -> Floats:
    return np.array([scored.by_class.get(name, np.nan) for name in test.classes])
