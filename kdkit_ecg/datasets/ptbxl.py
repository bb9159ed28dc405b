"""PTB-XL as data, from its own folder and tables (Wagner et al. 2020; PhysioNet ptb-xl 1.0.1 to 1.0.3)."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdkit import DataError, RecipeError
from kdkit_ecg.datasets.base import RecordingDataset
from kdkit_ecg.datasets.exclusions import ExcludedRecords, Reason
from kdkit_ecg.datasets.ptbxl_tables import Labels, Row, Statements, read_database, read_statements
from kdkit_ecg.datasets.scan import unfit
from kdkit_ecg.datasets.splits import Splits, splits_of
from kdkit_ecg.records.header import Header, read_header

FOLDS = 10


@dataclass(frozen=True, eq=False)
class PTBXL(RecordingDataset):
    """PTB-XL: ten seconds of twelve leads, (12, length) samples at `rate` Hz, read when a split is asked for.

    folder: the one that holds ptbxl_database.csv and scp_statements.csv. rate: 100 takes the files of records100, any
    other those of records500, resampled where it is not 500. labels: which SCP statements are classes (Strodthoff et
    al. 2021): "superdiagnostic" 5, "subdiagnostic" 23, "diagnostic" 44, "form" 19, "rhythm" 12 or "all" 71; records
    without one of them are left out, and a statement counts whatever its likelihood.
    fold: what is reported on, of the ten folds that come with the data (strat_fold), which keep patients whole; the one
    before it is chosen on. By default 10 and 9, which were validated by a human, as the authors recommend.
    An age of 300, for above 89, is unknown. Other options: as Challenge2020.

    Raises DataError for a folder without these tables, RecipeError for options that do not exist.
    """

    _: KW_ONLY
    rate: float = 100
    length: int = 1000
    labels: Labels = "superdiagnostic"
    fold: int = 10

    def __post_init__(self) -> None:
        RecordingDataset.__post_init__(self)
        if not (isinstance(self.fold, int) and 1 <= self.fold <= FOLDS):
            raise RecipeError(f"fold is one of 1 to {FOLDS}, as in strat_fold, not {self.fold!r}")
        if len(self._folders) != 1:
            raise RecipeError(f"PTB-XL is one folder, not {len(self._folders)}")

    @classmethod
    def _choices(cls) -> dict[str, Any]:
        return {**super()._choices(), "labels": Labels}

    @cached_property
    def _columns(self) -> Statements:
        return read_statements(self._folders[0] / "scp_statements.csv", self.labels)

    @cached_property
    def _rows(self) -> dict[str, Row]:
        """The rows of ptbxl_database.csv, by the name that the Challenge gives the record: HR00001 is ecg_id 1."""
        return read_database(self._folders[0] / "ptbxl_database.csv")

    @cached_property
    def _found(self) -> tuple[list[Header], ExcludedRecords]:
        left = ExcludedRecords(self._folders)
        found = []
        for name, row in sorted(self._rows.items()):
            path = self._path(row)
            try:
                header = replace(read_header(path), name=name, age=row.age, sex=row.sex, codes=row.codes)
            except DataError:
                left.add(Reason.HEADER if path.is_file() else Reason.NO_SIGNAL, path)
                continue
            reason = unfit(header, self._columns, normalised_units=False)
            if reason:
                left.add(reason, path)
            else:
                found.append(header)
        self._require_whole(found)
        return found, left

    def _path(self, row: Row) -> Path:
        file = row.low if self.rate == 100 else row.high
        return self._folders[0] / f"{file}.hea"

    def _require_whole(self, headers: Sequence[Header]) -> None:
        folds: dict[str, int] = {}
        for row in (self._rows[header.name] for header in headers):
            if folds.setdefault(row.patient, row.fold) != row.fold:
                raise DataError(
                    f"ptbxl_database.csv has patient {row.patient} in strat_fold {folds[row.patient]} and {row.fold}; "
                    "no patient is in two folds of the published table"
                )

    def _person(self, header: Header) -> str:
        return self._rows[header.name].patient

    def _place(self, header: Header) -> object:
        return self._rows[header.name].fold

    def _splits(self, headers: Sequence[Header]) -> Splits:
        folds = [self._rows[header.name].fold for header in headers]
        before = FOLDS if self.fold == 1 else self.fold - 1
        return splits_of(folds, test=self.fold, validation=before, selection=self.selection)
