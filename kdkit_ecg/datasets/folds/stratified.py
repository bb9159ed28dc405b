"""Folds in which every class, every database and every class of a database has its share, patients whole."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError
from kdkit_ecg.datasets.folds.random_split import fraction

# Ours, since scikit-learn's StratifiedGroupKFold takes one class per record, and the packages that stratify by several
# (iterative-stratification, scikit-multilearn) keep no groups whole.

Counts = NDArray[np.float64]

_PASSES = 5  # over all groups once they are placed, to move those that would now go elsewhere


def stratified_folds(
    labels: NDArray[np.floating[Any]],
    groups: Sequence[str],
    strata: Sequence[str],
    *,
    k: int = 5,
    seed: int = 0,
    kept: Mapping[str, int] | None = None,
) -> NDArray[np.int64]:
    """Return the fold of each record, 0 to k - 1: labels (records, classes) of 0 and 1 -> (records,).

    groups: what stays together, the patient of each record. strata: the database of each record.
    kept: group -> the fold that it is known to be in; only others are placed, around these.

    Greedy, after the iterative stratification of Sechidis et al. (2011), section 3.1: groups with the rarest class
    first, and of these the largest; each goes where what it has is scarcest so far, and may move once all are placed. A
    function of (seed, names and labels), whatever the order of the records. Further records move others, unless `kept`
    holds these. Raises RecipeError for fewer than two folds, and for a kept fold that is not among them.
    """
    if k < 2:
        raise RecipeError(f"there are two folds or more, not {k}")
    names = sorted(set(groups))
    row = {name: place for place, name in enumerate(names)}
    of_record = np.array([row[group] for group in groups], dtype=np.int64)
    features = _features(np.asarray(labels, dtype=np.float64), strata, groups)
    has = np.zeros((len(names), features.shape[1]))
    np.add.at(has, of_record, features)
    known = {row[name]: fold for name, fold in (kept or {}).items() if name in row}
    if not all(0 <= fold < k for fold in known.values()):
        raise RecipeError(f"kept names folds beyond the {k} there are, 0 to {k - 1}; take k as it was for those")
    return _placed(has, names, known, k, seed)[of_record]


def _features(labels: Counts, strata: Sequence[str], groups: Sequence[str]) -> Counts:
    """Return what is counted of each record: its stratum, its classes, its classes within the stratum, and itself."""
    of: dict[str, list[str]] = {}
    for group, stratum in zip(groups, strata, strict=True):
        of.setdefault(stratum, []).append(group)
    # In the order of their groups, so that it does not matter what somebody calls the folder of a database.
    order = sorted(of, key=lambda stratum: sorted(of[stratum]))
    within = np.array([[each == stratum for stratum in order] for each in strata], dtype=np.float64)
    pairs = within[:, :, None] * labels[:, None, :]
    # A class is counted twice as a whole, for it is scored over all databases, and once within its own.
    features = np.hstack([within, labels, labels, pairs.reshape(len(labels), -1), np.ones((len(labels), 1))])
    counted: Counts = features[:, features.any(axis=0)]
    return counted


def _placed(has: Counts, names: Sequence[str], known: Mapping[int, int], k: int, seed: int) -> NDArray[np.int64]:
    totals = has.sum(axis=0)
    weighted = has / totals
    folds = np.full(len(names), -1)
    filled = np.zeros((k, has.shape[1]))
    for group, fold in known.items():
        folds[group] = fold
        filled[fold] += has[group]
    order = [group for group in _order(has, totals, names, seed) if group not in known]
    for _ in range(1 + _PASSES):
        moved = False
        for group in order:
            before = folds[group]
            if before >= 0:
                filled[before] -= has[group]
            # The share of each class that a fold has already, summed over what the group would add to it: so a rare
            # class, of which one record is a large share, decides before a common one.
            excess = np.round(filled @ weighted[group], 9)
            best = np.flatnonzero(excess == excess.min()).tolist()
            if before not in best:
                folds[group] = min(best, key=lambda fold: fraction(seed, f"{names[group]} {fold}"))
                moved = True
            filled[folds[group]] += has[group]
        if not moved:
            break
    return folds


def _order(has: Counts, totals: Counts, names: Sequence[str], seed: int) -> list[int]:
    """Return the groups, rarest class first, then the largest, then by chance."""
    sizes = has.sum(axis=1)
    rare = np.where(has > 0, totals, np.inf)
    rarest = rare.argmin(axis=1)
    return sorted(
        range(len(names)),
        key=lambda group: (rare[group, rarest[group]], rarest[group], -sizes[group], fraction(seed, names[group])),
    )
