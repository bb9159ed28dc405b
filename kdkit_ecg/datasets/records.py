"""The user's own records: any files, leads and rates, with labels in a table."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError, RecipeError
from kdkit.utils.validation import is_number
from kdkit_ecg.augmentations.noise import require_electrodes
from kdkit_ecg.datasets.cross_validation import FoldedDataset
from kdkit_ecg.datasets.exclusions import ExcludedRecords, ExclusionReason
from kdkit_ecg.datasets.label_table import LabelTable, read_label_table
from kdkit_ecg.datasets.record_index import RecordIndex
from kdkit_ecg.datasets.scan import Selection, is_usable
from kdkit_ecg.labels import LabelEncoder
from kdkit_ecg.leads import LEADS, require_distinct_leads, standard_names
from kdkit_ecg.records.array_files import ArrayFormat
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.utils.messages import first_names

RecordTask = Literal["multilabel", "multiclass", "regression"]


@dataclass(frozen=True, eq=False)
class Records(FoldedDataset):
    """Records of any kind, labelled by a table: (leads, length) samples at `rate` Hz, read on the first use of a split.

    folder: one or several trees of WFDB, DICOM, XML (GE MUSE, HL7 aECG), EDF, NumPy, CSV or HDF5 files.
    labels: a CSV in the first folder, or elsewhere. Its column `record` has the path of each record below the folder,
    or its name if the name occurs once, with or without suffix; in a file of many records, it has the id of each. It
    has a column of 0 and 1 for each class, or a column `label` with names of classes; several are separated by ; or |,
    written as a list, or in several rows. The columns patient, age, sex and database are read if they exist, in any
    case.
    classes: names of the classes; () for all in the table. task: "multilabel"; "multiclass" if each record has exactly
    one class; "regression" if `classes` are columns of numbers, such as ("age",), which are the labels as they are.
    unknown: the number in the columns of labels that means unknown, such as -1, as empty cells then do too; NaN if only
    these do. Such labels are NaN, and a record is excluded if all are unknown. If None, one is excluded if any is.
    leads: names in the order of the channels; () for those of most records, for which the headers are read at once.
    Limb leads that a record lacks are derived from two others.
    columns: names of columns that differ from those above, such as {"record": "exam_id", "label": "diagnosis"}.
    arrays: describes files of numbers, see ArrayFormat; one for all of them, or by pattern of their paths below the
    folder, such as {"clinic/*": ArrayFormat(...), "*.h5": ArrayFormat(...)}, of which the first that matches is used.
    normalised_units: include records in standard deviations.
    Other options: see Challenge2020. Folds are made from the records, by patient, or are read from a file.

    Raises DataError for folders and tables that cannot be read, RecipeError for options that do not exist.
    """

    # Names and labels of all records are part of the fingerprint, wherever the table is.
    _without_effect: ClassVar[tuple[str, ...]] = (
        *FoldedDataset._without_effect,
        "labels",
        "columns",
        "arrays",
        "unknown",
    )

    labels: str | Path = "labels.csv"
    _: KW_ONLY
    classes: tuple[str, ...] = ()
    leads: tuple[str, ...] = ()
    rate: float = 250
    length: int = 2500
    task: RecordTask = "multilabel"
    columns: Mapping[str, str] | None = None
    arrays: ArrayFormat | Mapping[str, ArrayFormat] | None = None
    normalised_units: bool = False
    unknown: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.classes, str):
            raise RecipeError(f"classes must be names in a tuple, such as ('AF', 'other'), got {self.classes!r}")
        formats = self.arrays if isinstance(self.arrays, Mapping) else {"*": self.arrays}
        is_valid = all(isinstance(key, str) and isinstance(array, ArrayFormat) for key, array in formats.items())
        if self.arrays is not None and not is_valid:
            raise RecipeError(
                f"arrays must be an ArrayFormat(rate=..., unit=...), a dict such as {{'*.csv': ArrayFormat(...)}}, or "
                f"None, got {self.arrays!r}"
            )
        if not isinstance(self.columns, Mapping | None):
            raise RecipeError(f"columns must be a dict such as {{'record': 'exam_id'}} or None, got {self.columns!r}")
        self._require_unknown()
        object.__setattr__(self, "classes", self._table.classes.names)
        object.__setattr__(self, "leads", self._chosen_leads())
        require_electrodes(self.augment, self.leads)

    @property
    def notices(self) -> tuple[str, ...]:
        """Warnings to print with the results: about the options, the records, and columns that are not read."""
        unread = [
            f"the column {column!r} of the table of labels has values that are no age or sex: {first_names(texts)}; "
            "those of the files are used, if they have one"
            for column, texts in self._table.unread.items()
        ]
        mixed = [
            f"the column {column!r} of the table of labels is not a class, because it has values other than 0 and 1: "
            f"{first_names(texts)}; if a number among these means unknown, pass unknown=..."
            for column, texts in self._table.mixed.items()
        ]
        hidden = [f"the {role} of a person is a label, so networks do not get it" for role in self._hidden]
        unmatched = [
            f"the key {pattern!r} of arrays matches the path of no file of numbers below the folder"
            for pattern in sorted(self._index.unmatched)
        ]
        return (*super().notices, *unread, *mixed, *hidden, *unmatched)

    @property
    def has_unknown(self) -> bool:
        """Whether labels may be NaN, which means unknown."""
        return self.unknown is not None

    @cached_property
    def _table(self) -> LabelTable:
        path, numbers = self._table_file(self.labels), self.task == "regression"
        return read_label_table(path, self.columns or {}, self.classes, numbers=numbers, unknown=self.unknown)

    @property
    def _fold_columns(self) -> Mapping[str, str]:
        return self.columns or {}

    @property
    def _label_encoder(self) -> LabelEncoder:
        return self._table.classes

    @property
    def _hidden(self) -> Sequence[str]:
        return self._table.person_labels

    def _require_unknown(self) -> None:
        """Raise RecipeError if `unknown` is not a number that may mean unknown."""
        number, is_class = self.unknown, self.task != "regression"
        if number is None:
            return
        is_nan = isinstance(number, float) and math.isnan(number)
        if not (is_nan or is_number(number)) or (is_class and number in (0, 1)):
            raise RecipeError(
                "unknown must be the number that means an unknown label, such as -1, float('nan') if only empty cells "
                f"do, or None, got {number!r}"
            )
        if self.task == "multiclass":
            raise RecipeError(
                "unknown is for a column of 0 and 1 for each class, or for numbers; with task='multiclass', a record "
                "has one class, and one without a known class is excluded"
            )

    def _chosen_leads(self) -> tuple[str, ...]:
        if isinstance(self.leads, str):
            raise RecipeError(f"leads must be names in a tuple, such as ('I', 'II'), got {self.leads!r}")
        if not self.leads:
            return self._usual_leads()
        names = standard_names(self.leads)
        require_distinct_leads(names)
        return names

    def _usual_leads(self) -> tuple[str, ...]:
        """Return the leads of most records: those of the twelve in their order, then others."""
        sources, excluded = self._labelled
        counts = Counter(frozenset(source.leads) for source in sources)
        if not counts:
            raise DataError(
                f"no record in {self._folder_names} has a label in {self._table.path}, whose records are "
                f"{first_names(list(self._table.rows))}; the files are {first_names(self._index.names) or 'none'}:\n"
                f"{excluded.summary(0)}"
            )
        # The larger set if two are equally frequent; ties do not depend on the order of the records.
        usual = max(counts, key=lambda leads: (counts[leads], len(leads), sorted(leads)))
        return (*(lead for lead in LEADS if lead in usual), *sorted(usual - set(LEADS)))

    @cached_property
    def _index(self) -> RecordIndex:
        return RecordIndex(ExcludedRecords(self._folders), self.arrays, self._table.path)

    @cached_property
    def _labelled(self) -> Selection:
        """The labelled records that were found and can be read, sorted by name, and the excluded ones."""
        excluded = self._index.excluded
        sources: dict[str, RecordSource] = {}
        for record, source in self._index.find(self._table.rows):
            row = self._table.rows[record]
            if record in sources:  # by its id in a stack
                if sources[record].path != source.path:
                    raise DataError(
                        f"the table of labels names the record {record!r}, which {sources[record].path} and "
                        f"{source.path} both have; write the file too, such as {source.path.stem}/{record}"
                    )
                excluded.add(ExclusionReason.NAME, source.path)
            elif row.labels is None:
                may_lack = row.lacks_some and self.task != "multiclass"
                excluded.add(ExclusionReason.SOME_LABELS if may_lack else ExclusionReason.NO_LABEL, source.path)
            else:
                age, sex = source.age if row.age is None else row.age, row.sex or source.sex
                sources[record] = replace(
                    source,
                    name=record,
                    age=None if "age" in self._hidden else age,  # otherwise an input would be the label
                    sex=None if "sex" in self._hidden else sex,
                    codes=row.labels,
                    patient=row.patient,
                    database=row.database,  # not the folder, because each patient may have one
                )
        return Selection([sources[record] for record in sorted(sources)], excluded)

    def _find(self) -> Selection:
        sources, excluded_before = self._labelled
        excluded = excluded_before.copy()
        options: dict[str, Any] = {"leads": self.leads, "normalised_units": self.normalised_units}
        usable = [source for source in sources if is_usable(source, excluded, **options)]
        if self.task == "multiclass":
            wrong = [source.name for source in usable if self._label_encoder.row(source.codes).sum() != 1]
            if wrong:
                raise DataError(
                    f"task='multiclass' needs one of the classes {', '.join(self.classes[:10])} for each record; "
                    f"{len(wrong)} of {len(usable)} have none or several: {first_names(wrong)}. Remove their rows, or "
                    "use task='multilabel'"
                )
        return Selection(usable, excluded)

    def _record_notices(self) -> list[str]:
        notices = super()._record_notices()
        if self.task == "regression":
            ages = [(source.codes, source.age) for source in self._selected.sources if source.age is not None]
            notices += [
                f"the numbers in the column {name!r} of the table of labels are the ages, which networks get as an "
                f"input; columns={{'age': {name!r}}} hides these"
                for column, name in enumerate(self.classes)
                if ages and all(not abs(float(numbers[column]) - age) >= 1 for numbers, age in ages)
            ]
        return notices

    def _fold_classes(self, labels: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.task != "regression":
            return np.nan_to_num(labels)
        # One class for each fifth of the values of each number; the last one has unknown numbers too.
        bounds = np.nanquantile(labels, (0.2, 0.4, 0.6, 0.8), axis=0).T
        fifths = [np.searchsorted(bound, column, side="right") for bound, column in zip(bounds, labels.T, strict=True)]
        return np.hstack([np.eye(5, dtype=np.float32)[fifth] for fifth in fifths])

    def _missing_records(self) -> Sequence[str]:
        files = {source.name for source in self._labelled.sources}
        lost = [name for name, row in self._table.rows.items() if row.labels is not None and name not in files]
        lines = [f"  {len(lost)} records of the table of labels cannot be found or read: {first_names(lost)}"]
        return [*super()._missing_records(), *(lines if lost else [])]
