"""PTB-XL as a data set, from its own folder and tables (Wagner et al. 2020; PhysioNet ptb-xl 1.0.1 to 1.0.3)."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property

from kdkit import DataError, RecipeError
from kdkit.utils.validation import is_whole_number
from kdkit_ecg.datasets.base import RecordingDataset
from kdkit_ecg.datasets.exclusions import ExcludedRecords, ExclusionReason
from kdkit_ecg.datasets.folds import divided_persons
from kdkit_ecg.datasets.ptbxl_tables import DatabaseRow, Labels, read_database, read_statements
from kdkit_ecg.datasets.scan import Selection, is_usable
from kdkit_ecg.datasets.splits import Splits, splits_of_folds
from kdkit_ecg.labels import Classes
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.utils.record_files import present_file

FOLDS = 10


@dataclass(frozen=True, eq=False)
class PTBXL(RecordingDataset):
    """PTB-XL: ten seconds of twelve leads, (12, length) samples at `rate` Hz, read on the first use of a split.

    folder: the folder that contains ptbxl_database.csv and scp_statements.csv. rate: 100 reads the files in records100;
    any other rate reads those in records500, resampled unless it is 500.
    labels: the SCP statements that are classes (Strodthoff et al. 2021): "superdiagnostic" 5, "subdiagnostic" 23,
    "diagnostic" 44, "form" 19, "rhythm" 12 or "all" 71. Records without any of them are excluded. A statement counts
    regardless of its likelihood.
    fold: the test fold, one of the ten that come with the data (strat_fold), which keep each patient in one fold. The
    fold before it is the validation fold. The default folds, 10 and 9, were validated by a human and are recommended by
    the authors.
    An age of 300, which means above 89, is unknown. Other options: see Challenge2020.

    Raises DataError for a folder without these tables, RecipeError for options that do not exist.
    """

    _: KW_ONLY
    rate: float = 100
    length: int = 1000
    labels: Labels = "superdiagnostic"
    fold: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_whole_number(self.fold) and 1 <= self.fold <= FOLDS):
            raise RecipeError(f"fold must be one of 1 to {FOLDS}, as in strat_fold, got {self.fold!r}")
        if len(self._folders) != 1:
            raise RecipeError(f"PTB-XL is read from one folder, got {len(self._folders)}")

    @cached_property
    def _label_encoder(self) -> Classes:
        return read_statements(self._folders[0] / "scp_statements.csv", self.labels)

    @cached_property
    def _database(self) -> dict[str, DatabaseRow]:
        """The rows of ptbxl_database.csv, by the name of the record in the Challenge: HR00001 is ecg_id 1."""
        return read_database(self._folders[0] / "ptbxl_database.csv")

    @cached_property
    def _selected(self) -> Selection:
        excluded = ExcludedRecords(self._folders)
        selected: list[RecordSource] = []
        for name, row in sorted(self._database.items()):
            path = present_file(self._folders[0] / f"{row.file_100_hz if self.rate == 100 else row.file_500_hz}.hea")
            try:
                # The headers contain neither person nor diagnoses; the table does.
                source = replace(
                    read_header(path), name=name, patient=row.patient, age=row.age, sex=row.sex, codes=row.codes
                )
            except DataError as error:
                if path.is_file():
                    excluded.add(ExclusionReason.HEADER, path, cause=error)
                else:
                    excluded.add(ExclusionReason.NO_SIGNAL, path)
                continue
            if is_usable(source, excluded, encoder=self._label_encoder):
                selected.append(source)
        divided = divided_persons((source.patient, self._database[source.name].fold) for source in selected)
        if divided:
            patient, folds = next(iter(divided.items()))
            raise DataError(
                f"ptbxl_database.csv has patient {patient} in strat_fold {' and '.join(map(str, folds))}; in the "
                "published table, each patient is in one fold"
            )
        return Selection(selected, excluded)

    def _person(self, source: RecordSource) -> str:
        return source.patient or f"record {source.name}"

    def _split_key(self, source: RecordSource) -> object:
        return self._database[source.name].fold

    def _split_rows(self, sources: Sequence[RecordSource]) -> Splits:
        folds = [self._database[source.name].fold for source in sources]
        previous = FOLDS if self.fold == 1 else self.fold - 1  # strat_fold counts from 1
        validation = self.fold if self.validation_split == "test" else previous
        return splits_of_folds(folds, test=self.fold, validation=validation)
