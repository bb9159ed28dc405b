"""Recordings that are shared out in folds, made here or named by a file, or by chance."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError, RecipeError
from kdkit_ecg.datasets.base import RecordingDataset
from kdkit_ecg.datasets.exclusions import ExcludedRecords, Reason, few
from kdkit_ecg.datasets.folds import Folds, Place, people, split_by_patient, stratified_folds
from kdkit_ecg.datasets.patient_table import Rows
from kdkit_ecg.datasets.scan import database_of
from kdkit_ecg.datasets.signals import twins
from kdkit_ecg.datasets.splits import Splits, splits_of
from kdkit_ecg.records.header import Header


class FoldMember(NamedTuple):
    """Where a record comes from, who it is of ("" where nobody knows), and what stays in one fold with it."""

    database: str
    patient: str
    group: str


Grouping = Literal["patient", "record"]

FOLDS = 5  # where neither folds nor shares are given, as the paper has them


@dataclass(frozen=True, eq=False)
class FoldedDataset(RecordingDataset):
    """Recordings in folds. A data set of its own says which records fit, and reads the table of their patients."""

    _: KW_ONLY
    folds: int | str | Path | Folds | None = None
    fold: int = 0
    shares: tuple[float, float, float] | None = None
    grouping: Grouping = "patient"

    def __post_init__(self) -> None:
        RecordingDataset.__post_init__(self)
        if self.shares is not None and self.folds is not None:
            raise RecipeError("splits are made of folds or by shares: give one of the two")
        fewest = 2 if self.selection == "test" else 3  # to report on, to choose on, to learn from
        if isinstance(self.folds, int) and self.folds < fewest:
            raise RecipeError(f"selection={self.selection!r} takes {fewest} folds or more, not {self.folds}")
        if isinstance(self.folds, (str, Path)) and not Path(self.folds).is_file():
            raise DataError(f"there is no folds file {self.folds}; kdkit_ecg.make_folds(folder).write(file) makes one")

    @classmethod
    def _choices(cls) -> Mapping[str, Any]:
        return {**super()._choices(), "grouping": Grouping}

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader of the results must know of the options, and once the records were found of these."""
        notices = list(super().notices)
        found = self._found[0] if "_found" in vars(self) else []  # so that asking reads no file
        strangers = sum(not self._patient(header) for header in found)
        if self.grouping == "record":
            notices.append("folds are by record: a patient may be in several splits")
        elif self._nobody_named():
            notices.append("there is no records.csv to name the patients: each record counts as its own patient")
        elif strangers:
            notices.append(
                f"no patient is named for {strangers} of {len(found)} records: each of those counts as its own patient"
            )
        if found and self._absent():
            notices.append(f"{self._absent()[0].strip()}: scores are not those of the whole")
        return tuple(notices)

    def made_folds(self, keep: Folds | None = None) -> Folds:
        """Return the folds of the records found, as many as `folds` says; those in `keep` stay where they are."""
        k = self.folds if isinstance(self.folds, int) else FOLDS
        headers, left = self._fit
        members = self._members()
        groups = {member.group for member in members.values()}
        if len(groups) < k and keep is None:
            raise DataError(
                f"{len(groups)} patients in {self._where} cannot fill {k} folds; give fewer folds, or shares:\n"
                f"{left.summary(len(headers))}"
            )
        made = {"seed": str(self.seed), "year": self._year, "grouping": self.grouping}
        labels = np.stack([self._columns.row(header.codes) for header in headers])
        return fold_records(members, labels, k=k, made=made, keep=keep)

    def _members(self) -> dict[str, FoldMember]:
        """Return what the folds must know of each record, by its name."""
        sizes = Counter(self._groups.values())
        members = {}
        for header in self._fit[0]:
            person = self._groups[header.name]
            alone = f"record {header.name}"
            patient = "" if person == alone and sizes[person] == 1 else person
            group = person if self.grouping == "patient" else alone
            members[header.name] = FoldMember(database_of(header, self._rows), patient, group)
        return members

    @property
    @abstractmethod
    def _fit(self) -> tuple[list[Header], ExcludedRecords]:
        """The headers that can be learned from, whether they have a fold or not; a cached_property."""

    @property
    @abstractmethod
    def _rows(self) -> Rows:
        """What a table says of the records; a cached_property."""

    @property
    @abstractmethod
    def _year(self) -> str:
        """The year of the classes, to be told with the folds."""

    @cached_property
    def _found(self) -> tuple[list[Header], ExcludedRecords]:
        headers, fit = self._fit
        left = fit.copy()
        if self.shares is not None or not headers:
            return headers, left
        placed = self._folds.places
        if headers and not any(header.name in placed for header in headers):
            raise DataError(
                f"none of the {len(placed)} records of the folds file, {next(iter(placed))!r} first, is among the "
                f"{len(headers)} found in {self._where}, {headers[0].name!r} first"
            )
        for header in headers:
            if header.name not in placed:
                left.add(Reason.FOLD, header.path)
        found = [header for header in headers if header.name in placed]
        if self.grouping == "patient":
            require_whole(found, self._groups, self._folds)
        return found, left

    @cached_property
    def _folds(self) -> Folds:
        folds = Folds.read(self.folds) if isinstance(self.folds, (str, Path)) else self.folds
        folds = folds if isinstance(folds, Folds) else self.made_folds()
        if not 0 <= self.fold < folds.k:
            raise RecipeError(f"fold is the one to report on, 0 to {folds.k - 1}, not {self.fold}")
        if folds.k < 3 and self.selection == "separate":
            raise RecipeError("two folds leave none to learn from beside those to choose and to report on")
        return folds

    @cached_property
    def _groups(self) -> dict[str, str]:
        """The person of each record, by its name."""
        headers = self._fit[0]
        return people(headers, {header.name: self._patient(header) for header in headers}, twins(headers))

    def _person(self, header: Header) -> str:
        return self._groups[header.name]

    def _patient(self, header: Header) -> str:
        """Return who the record is of, as the table or else the folds file says; "" where neither does."""
        told = self._rows.get(header.name, {}).get("patient", "")
        given = isinstance(self.folds, (str, Path, Folds)) and header.name in self._folds.places
        return told or (self._folds.places[header.name].patient if given else "")

    def _place(self, header: Header) -> object:
        if self.shares is None:
            return self._folds.places[header.name].fold
        return self._patient(header) if self.grouping == "patient" else ""

    def _absent(self) -> Sequence[str]:
        if self.shares is not None or not self._found[0]:
            return ()
        here = {header.name for header in self._found[0]}
        gone = [record for record in self._folds.places if record not in here]
        return [f"  {len(gone)} records of the folds file are not here: {few(gone)}"] if gone else []

    def _splits(self, headers: Sequence[Header]) -> Splits:
        if self.shares is not None:
            alone = self.grouping == "record"
            names = [f"record {header.name}" if alone else self._groups[header.name] for header in headers]
            train, validation, test = split_by_patient(names, self.seed, self.shares)
            return Splits(train, test if self.selection == "test" else validation, test)
        folds = [self._folds.places[header.name].fold for header in headers]
        following = (self.fold + 1) % self._folds.k
        return splits_of(folds, test=self.fold, validation=following, selection=self.selection)

    def _nobody_named(self) -> bool:
        """Whether there is nothing that could name a patient."""
        given = isinstance(self.folds, (str, Path, Folds)) and any(row.patient for row in self._folds.places.values())
        return not given and not any((folder / "records.csv").is_file() for folder in self._folders)


def fold_records(
    members: Mapping[str, FoldMember],
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


def _kept(keep: Folds, members: Mapping[str, FoldMember], k: int) -> dict[str, int]:
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
