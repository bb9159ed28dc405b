"""The PhysioNet/CinC Challenges of 2020 and 2021 as data sets, read from the folders of a release."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from kdkit import DataError
from kdkit.utils.validation import validate_choice
from kdkit_ecg.datasets.base import Folder
from kdkit_ecg.datasets.cross_validation import FOLDS, FoldedDataset
from kdkit_ecg.datasets.exclusions import ExcludedRecords
from kdkit_ecg.datasets.folds import Folds, neighbours_of_one_patient
from kdkit_ecg.datasets.scan import Selection, find_records
from kdkit_ecg.labels import LabelEncoder, Year, scored_classes
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.utils.tables import read_patient_table

# The choices of LRH-Net's authors that change numbers. Folds by record and thresholds chosen on the test fold are
# leaks, kept to reproduce the paper.
PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "resampling": "linear",
        "band": None,
        "scaling": "raw",
        "crop": "random",
        "validation_split": "test",
        "grouping": "record",
    }
)


@dataclass(frozen=True, eq=False)
class _Challenge(FoldedDataset):
    year: ClassVar[Year]

    _: KW_ONLY
    normalised_units: bool = False

    @classmethod
    def paper(cls, folder: Folder | Sequence[Folder], **options: Any) -> Self:
        """Return the data as the authors of LRH-Net prepare it (PAPER), with these options changed."""
        return cls(folder, **{**PAPER, **options})

    @property
    def _provenance(self) -> Mapping[str, str]:
        return {"year": str(self.year)}

    @property
    def _label_encoder(self) -> LabelEncoder:
        return scored_classes(self.year)

    def _of_one_person(self, sources: Sequence[RecordSource]) -> list[Sequence[str]]:
        return [*super()._of_one_person(sources), *neighbours_of_one_patient(sources)]

    def _find(self) -> Selection:
        excluded = ExcludedRecords(self._folders)
        table = read_patient_table(self._folders)
        sources = find_records(self._label_encoder, table, excluded, normalised_units=self.normalised_units)
        # A table without any of the records has wrong names, and patients would silently be split.
        if self.grouping == "patient" and table and sources and not any(source.name in table for source in sources):
            raise DataError(
                f"records.csv in {self._folder_names} lists {len(table)} records, the first one {next(iter(table))!r}, "
                f"but none of the {len(sources)} records found, the first one {sources[0].name!r}; its column record "
                "must contain the names in the headers"
            )
        return Selection(sources, excluded)


class Challenge2020(_Challenge):
    """Challenge 2020, 24 classes: twelve leads, (12, length) samples at `rate` Hz, read on the first use of a split.

    folder: one or several trees of .hea headers with their .mat or .dat signals. A records.csv at a root may contain
    the patient of each record (columns record and patient, and database if a name occurs twice). A record without a
    patient counts as a separate patient.
    band: Hz, applied at the rate of the record, or None. scaling: "zscore" per lead, or "raw" mV. resampling, crop,
    grouping: see PAPER. augment: augmentations of training samples, different in each draw.
    validation_split: "separate", or "test" to choose thresholds and epochs on the test split, which is a leak.
    folds: a file of folds (Folds), or the number of folds to make of the records, 5 by default. Fold number `fold` is
    the test split, the next one the validation split, the others the train split. shares: instead of folds, the shares
    of records in train, validation and test, drawn at random.
    normalised_units: include records in standard deviations (NU). strict: raise DataError if any record is excluded.
    draws: number of different windows of a record during training. seed: of the splits and the windows.
    store: the folder that contains the stores of prepared signals, "auto" for the user's cache, or None to prepare the
    records in every run and hold them in memory.

    Raises DataError for a folder without records, RecipeError for options that do not exist.
    """

    year = 2020


class Challenge2021(_Challenge):
    """Challenge 2021, 26 classes; otherwise like Challenge2020."""

    year = 2021


def make_folds(
    folder: Folder | Sequence[Folder],
    *,
    k: int = FOLDS,
    seed: int = 0,
    year: Year = 2020,
    keep: Folds | str | Path | None = None,
    **options: Any,
) -> Folds:
    """Return multi-label stratified folds of the records in one or several folders; `.write(path)` saves them.

    k: number of folds. year: of the Challenge whose classes are stratified. keep: folds, or a file of them, whose
    records and patients keep their fold. options: of Challenge2020, such as grouping="record", normalised_units=True.
    """
    validate_choice("year", year, Year)
    challenge = Challenge2020 if year == 2020 else Challenge2021
    existing = keep if keep is None or isinstance(keep, Folds) else Folds.read(keep)
    # Two folds are allowed here, so the validation split must not need its own fold.
    return challenge(folder, folds=k, seed=seed, validation_split="test", **options).make_folds(existing)
