"""The challenge metric of PhysioNet/CinC 2020 and 2021: answers weighed by how alike the treatment would be."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    figures = np.array([[float(cell) for cell in row.split(",")] for row in rows])
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
