"""Make folds of the records that were found, and hold a file of folds to the patients."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.datasets.leftout import few
from kdkit_ecg.folds import Folds, Place, stratified_folds
from kdkit_ecg.headers import Header


class Member(NamedTuple):
    """Where a record comes from, who it is of ("" where nobody knows), and what stays in one fold with it."""

    database: str
    patient: str
    group: str


def fold_records(
    members: Mapping[str, Member],
    labels: NDArray[np.floating[Any]],
    *,
    k: int,
    made: Mapping[str, str],
    keep: Folds | None = None,
) -> Folds:
    """Return k folds of the records, groups whole, stratified by class and database.

    labels: (records, classes) of 0 and 1. made: how, with `seed` among it. keep: folds whose records, and whose
    patients, stay where they are, records that are not among the members too.
    Raises DataError where `keep` has another number of folds, or one group in two of them.
    """
    kept = _kept(keep, members, k) if keep else {}
    groups = [member.group for member in members.values()]
    databases = [member.database for member in members.values()]
    folds = stratified_folds(labels, groups, databases, k=k, seed=int(made["seed"]), kept=kept)
    places = dict(keep.places) if keep else {}
    for (record, member), fold in zip(members.items(), folds.tolist(), strict=True):
        places[record] = Place(member.database, member.patient, fold)
    return Folds(places=places, k=k, made=made)


def require_whole(headers: Sequence[Header], groups: Mapping[str, str], folds: Folds) -> None:
    """Raise DataError where one person's records are in two folds."""
    seen: dict[str, set[int]] = {}
    for header in headers:
        seen.setdefault(groups[header.name], set()).add(folds.places[header.name].fold)
    parted = [person for person, of in seen.items() if len(of) > 1]
    if parted:
        raise DataError(
            f"the folds part {len(parted)} patients, {few(parted)}: a network would be tested on people it learned "
            "from. Make folds that know the patients (kdkit_ecg.make_folds), or take grouping='record' to accept this"
        )


def _kept(keep: Folds, members: Mapping[str, Member], k: int) -> dict[str, int]:
    """Return group -> the fold it is in already."""
    if keep.k != k:
        raise DataError(f"there are {keep.k} folds to keep, and {k} are to be made; give k={keep.k}")
    patients = {place.patient: place.fold for place in keep.places.values() if place.patient}
    kept: dict[str, int] = {}
    for record, member in members.items():
        known = keep.places[record].fold if record in keep.places else patients.get(member.group)
        if known is not None and kept.setdefault(member.group, known) != known:
            raise DataError(f"the folds to keep have {member.group} in {kept[member.group]} and {known}; make new ones")
    return kept
