"""Make folds with equal shares of every class, every database and every class of a database, by patient."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError

# Implemented here because the StratifiedGroupKFold of scikit-learn supports only one class per record, and the packages
# that stratify by several classes (iterative-stratification, scikit-multilearn) do not support groups.

Counts = NDArray[np.float64]

_PASSES = 5  # over all groups after the first assignment, to move groups that fit better into another fold


def stratified_folds(
    labels: NDArray[np.floating[Any]],
    groups: Sequence[str],
    strata: Sequence[str],
    *,
    k: int = 5,
    seed: int = 0,
    fixed: Mapping[str, int] | None = None,
) -> NDArray[np.int64]:
    """Return the fold of each record, 0 to k - 1: labels (records, classes) of 0 and 1 -> (records,).

    groups: the patient of each record; a group is never divided. strata: the database of each record.
    fixed: group -> its fold. Only the other groups are assigned.

    Greedy, after the iterative stratification of Sechidis et al. (2011), section 3.1: groups with the rarest class come
    first, the largest of them first. Each goes to the fold that has the least of its classes so far, and may move after
    all are assigned. The result is a function of (seed, names and labels), not of the order of the records. Additional
    records may move existing ones, unless `fixed` contains them. Raises RecipeError for fewer than two folds, and for a
    fixed fold that does not exist.
    """
    if k < 2:
        raise RecipeError(f"k must be two folds or more, got {k}")
    names = sorted(set(groups))
    group_index = {name: index for index, name in enumerate(names)}
    group_of_record = np.array([group_index[group] for group in groups], dtype=np.int64)
    features = _record_features(np.asarray(labels, dtype=np.float64), strata, groups)  # (records, features)
    counts = np.zeros((len(names), features.shape[1]))  # (groups, features)
    np.add.at(counts, group_of_record, features)
    fixed_folds = {group_index[name]: fold for name, fold in (fixed or {}).items() if name in group_index}
    if not all(0 <= fold < k for fold in fixed_folds.values()):
        raise RecipeError(f"fixed contains folds other than 0 to {k - 1}; use the k with which they were made")
    return _assign_groups(counts, names, fixed_folds, k, seed)[group_of_record]


def _record_features(labels: Counts, strata: Sequence[str], groups: Sequence[str]) -> Counts:
    """Return the features to balance, (records, features): stratum, classes, classes within the stratum, and 1."""
    groups_of_stratum: dict[str, list[str]] = {}
    for group, stratum in zip(groups, strata, strict=True):
        groups_of_stratum.setdefault(stratum, []).append(group)
    # Ordered by their groups, so that the folds do not depend on the name of the folder of a database.
    order = sorted(groups_of_stratum, key=lambda stratum: sorted(groups_of_stratum[stratum]))
    in_stratum = np.array([[name == stratum for stratum in order] for name in strata], dtype=np.float64)
    class_in_stratum = in_stratum[:, :, None] * labels[:, None, :]  # (records, strata, classes)
    # A class counts twice over all databases, because it is scored over all of them, and once within its own.
    columns = [in_stratum, labels, labels, class_in_stratum.reshape(len(labels), -1), np.ones((len(labels), 1))]
    features = np.hstack(columns)
    used: Counts = features[:, features.any(axis=0)]  # a column of zeros would give a share of 0 / 0 below
    return used


def _assign_groups(
    counts: Counts, names: Sequence[str], fixed: Mapping[int, int], k: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold of each group: counts (groups, features) -> (groups,)."""
    totals = counts.sum(axis=0)
    shares = counts / totals
    folds = np.full(len(names), -1)
    fold_counts = np.zeros((k, counts.shape[1]))
    for group, fold in fixed.items():
        folds[group] = fold
        fold_counts[fold] += counts[group]
    # The groups with the rarest feature first, then the largest, then in pseudo-random order.
    feature_totals = np.where(counts > 0, totals, np.inf)
    rarest, sizes = feature_totals.argmin(axis=1), counts.sum(axis=1)
    order = sorted(
        [group for group in range(len(names)) if group not in fixed],
        key=lambda group: (
            feature_totals[group, rarest[group]],
            rarest[group],
            -sizes[group],
            hash_fraction(seed, names[group]),
        ),
    )
    for _ in range(1 + _PASSES):
        moved = False
        for group in order:
            previous = folds[group]
            if previous >= 0:
                fold_counts[previous] -= counts[group]
            # The counts of each fold, weighted with this group's share of each feature. One record is a large share of
            # a rare class, so a rare class outweighs a common one. Rounded, so that ties do not depend on the order of
            # the sum.
            excess = np.round(fold_counts @ shares[group], 9)  # (k,)
            best = np.flatnonzero(excess == excess.min()).tolist()
            if previous not in best:
                folds[group] = min(best, key=lambda fold: hash_fraction(seed, f"{names[group]} {fold}"))
                moved = True
            fold_counts[folds[group]] += counts[group]
        if not moved:
            break
    return folds


def hash_fraction(seed: int, text: str) -> float:
    """Return a pseudo-random number in [0, 1) for a text. Unlike hash(), it is the same in every process."""
    digest = hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
