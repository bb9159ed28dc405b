"""Recordings split by folds (made here or read from a file), or at random."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError, RecipeError
from kdkit.utils.files import is_file
from kdkit.utils.paths import user_path
from kdkit.utils.validation import is_whole_number, validate_counts
from kdkit_ecg.datasets.base import RecordingDataset
from kdkit_ecg.datasets.exclusions import ExclusionReason
from kdkit_ecg.datasets.folds import FoldEntry, Folds, assign_persons, divided_persons, stratified_folds
from kdkit_ecg.datasets.scan import Selection
from kdkit_ecg.datasets.signals import duplicate_signals
from kdkit_ecg.datasets.splits import Splits, require_shares, split_by_patient, splits_of_folds
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.utils.messages import first_names

Grouping = Literal["patient", "record"]

FOLDS = 5  # the default, as in the paper of LRH-Net


@dataclass(frozen=True, eq=False)
class FoldedDataset(RecordingDataset):
    """Recordings in folds. A subclass finds the usable records and reads the table of their patients."""

    _: KW_ONLY
    folds: int | str | Path | Folds | None = None
    fold: int = 0
    shares: tuple[float, float, float] | None = None
    grouping: Grouping = "patient"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shares is not None and self.folds is not None:
            raise RecipeError("folds and shares exclude each other; give one of the two")
        validate_counts(self, "fold", least=0)
        if self.shares is not None and self.fold != 0:
            raise RecipeError(f"with shares there are no folds, but fold is {self.fold}; give another seed, or folds")
        if is_whole_number(self.folds):
            object.__setattr__(self, "folds", int(self.folds))
        elif not isinstance(self.folds, str | Path | Folds | None):
            raise RecipeError(f"folds must be a number of folds, a file of them or None, got {self.folds!r}")
        if self.shares is not None:
            require_shares(self.shares)
        minimum = 2 if self.validation_split == "test" else 3  # test, train, and a separate validation fold
        if isinstance(self.folds, int) and self.folds < minimum:
            raise RecipeError(
                f"validation_split={self.validation_split!r} needs {minimum} folds or more, got {self.folds}"
            )
        if isinstance(self.folds, (str, Path)):
            path = self._table_file(self.folds)
            if not is_file(path):
                raise DataError(
                    f"the folds file {self.folds} does not exist; kdkit_ecg.make_folds(folder).write(file) creates one"
                )
            object.__setattr__(self, "folds", path)

    def _table_file(self, path: str | Path) -> Path:
        """Return the path of a table that is in the first folder, or elsewhere."""
        path = user_path(path)
        below = self._folders[0] / path
        return path if is_file(path) and not is_file(below) else below

    @property
    def notices(self) -> tuple[str, ...]:
        """Warnings to print with the results: about the options, and about the records once they have been found."""
        by_record = self.grouping == "record"
        return (
            *super().notices,
            *(["folds are by record, so a patient may be in several splits"] if by_record else []),
        )

    def make_folds(self, keep: Folds | None = None) -> Folds:
        """Return `folds` folds of the usable records. Records in `keep` stay in their fold."""
        k = self.folds if isinstance(self.folds, int) else FOLDS
        sources, excluded = self._usable
        if not sources:
            raise DataError(f"no record in {self._folder_names} can be used:\n{excluded.summary(0)}")
        if keep and keep.k != k:
            raise DataError(
                f"the existing folds are {keep.k}, but {k} are requested; give k={keep.k} or folds={keep.k}"
            )
        groups = {source.name: self._group(source) for source in sources}
        if len(set(groups.values())) < k and keep is None:
            raise DataError(
                f"{len(set(groups.values()))} patients in {self._folder_names} are too few for {k} folds; use fewer "
                f"folds, or shares:\n{excluded.summary(len(sources))}"
            )
        labels = np.stack([self._label_encoder.row(source.codes) for source in sources])  # (records, classes)
        folds = stratified_folds(
            self._fold_classes(labels),
            list(groups.values()),
            [source.database for source in sources],
            k=k,
            seed=self.seed,
            fixed=keep.folds_of_groups(groups) if keep else None,
        )
        sizes = Counter(self._persons.values())
        entries = dict(keep.entries) if keep else {}  # including records that were not found this time
        for source, fold in zip(sources, folds.tolist(), strict=True):
            person = self._persons[source.name]
            # Records merged by a duplicate signal may share a person that is named after one of them.
            is_unknown = person == f"record {source.name}" and sizes[person] == 1
            entries[source.name] = FoldEntry(source.database, "" if is_unknown else person, fold)
        provenance = {"seed": str(self.seed), **self._provenance, "grouping": self.grouping}
        return Folds(entries=entries, k=k, provenance=provenance)

    def _fold_classes(self, labels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the classes to share equally among folds, (records, classes) of 0 and 1, from the labels."""
        return labels

    @abstractmethod
    def _find(self) -> Selection:
        """Find the usable records, with or without a fold, and the excluded ones."""

    @property
    def _provenance(self) -> Mapping[str, str]:
        """What a folds file states about the classes, without spaces; nothing by default."""
        return {}

    @cached_property
    def _usable(self) -> Selection:
        """The usable records and the excluded ones. Patients that no table has are those of the folds file."""
        sources, excluded = self._find()
        entries = self._given_folds.entries if self._given_folds else {}
        for row, source in enumerate(sources):
            if not source.patient and source.name in entries:
                sources[row] = replace(source, patient=entries[source.name].patient)
        return Selection(sources, excluded)

    @cached_property
    def _selected(self) -> Selection:
        sources, excluded_before = self._usable
        excluded = excluded_before.copy()
        if self.shares is not None or not sources:
            return Selection(sources, excluded)
        entries = self._folds.entries
        selected = [source for source in sources if source.name in entries]
        if not selected:
            raise DataError(
                f"none of the {len(entries)} records in the folds file, the first one {next(iter(entries))!r}, is "
                f"among the {len(sources)} found in {self._folder_names}, the first one {sources[0].name!r}"
            )
        for source in sources:
            if source.name not in entries:
                excluded.add(ExclusionReason.NO_FOLD, source.path)
        # Folds from a file may divide patients; folds made here by patient never do.
        if self.grouping == "patient":
            divided = divided_persons((self._persons[source.name], entries[source.name].fold) for source in selected)
            if divided:
                raise DataError(
                    f"{len(divided)} patients have records in several folds, {first_names(list(divided))}, so a "
                    "network would be tested on patients that it was trained on. Make folds by patient "
                    "(kdkit_ecg.make_folds), or use grouping='record' to accept this"
                )
        return Selection(selected, excluded)

    @property
    def _fold_columns(self) -> Mapping[str, str]:
        """The names of columns in a file of folds, if they differ from the usual ones; see `Folds.read`."""
        return {}

    @cached_property
    def _given_folds(self) -> Folds | None:
        """The folds in the file or object that was passed; None if they are made here."""
        if isinstance(self.folds, str | Path):
            return Folds.read(self.folds, columns=self._fold_columns)
        return self.folds if isinstance(self.folds, Folds) else None

    @cached_property
    def _folds(self) -> Folds:
        folds = self._given_folds or self.make_folds()
        if not 0 <= self.fold < folds.k:
            raise RecipeError(f"fold is the number of the test fold, 0 to {folds.k - 1}, got {self.fold}")
        if folds.k < 3 and self.validation_split == "separate":
            raise RecipeError("with two folds and a separate validation split, no fold is left for training")
        return folds

    @cached_property
    def _persons(self) -> dict[str, str]:
        """The person of each usable record, by its name."""
        sources = self._usable.sources
        return assign_persons(sources, self._of_one_person(sources))

    def _of_one_person(self, sources: Sequence[RecordSource]) -> list[Sequence[str]]:
        """Return lists of names of records that belong to one person, although no table says so."""
        return [*duplicate_signals(sources)]

    def _person(self, source: RecordSource) -> str:
        return self._persons[source.name]

    def _group(self, source: RecordSource) -> str:
        """Return the group of a record, whose records stay in one split."""
        return self._persons[source.name] if self.grouping == "patient" else f"record {source.name}"

    def _record_notices(self) -> list[str]:
        notices = [] if self.grouping == "record" else super()._record_notices()
        missing = [f"{line.strip()}; metrics are not those of all records" for line in self._missing_records()[:1]]
        return [*notices, *missing]

    def _split_key(self, source: RecordSource) -> object:
        if self.shares is None:
            return self._folds.entries[source.name].fold
        return source.patient if self.grouping == "patient" else ""

    def _missing_records(self) -> Sequence[str]:
        if self.shares is not None or not self._selected.sources:
            return ()
        present = {source.name for source in self._selected.sources}
        missing = [record for record in self._folds.entries if record not in present]
        return [f"  {len(missing)} records of the folds file were not found: {first_names(missing)}"] if missing else []

    def _split_rows(self, sources: Sequence[RecordSource]) -> Splits:
        if self.shares is not None:
            train, validation, test = split_by_patient(list(map(self._group, sources)), self.seed, self.shares)
            return Splits(train, test if self.validation_split == "test" else validation, test)
        folds = [self._folds.entries[source.name].fold for source in sources]
        # Every fold is the validation fold for one test fold.
        validation_fold = self.fold if self.validation_split == "test" else (self.fold + 1) % self._folds.k
        return splits_of_folds(folds, test=self.fold, validation=validation_fold)
