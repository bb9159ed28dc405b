"""The PhysioNet/CinC Challenges of 2020 and 2021 as data, from the folders of a release as they come."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from kdkit import DataError
from kdkit_ecg.datasets.base import Folder
from kdkit_ecg.datasets.cross_validation import FOLDS, FoldedDataset
from kdkit_ecg.datasets.exclusions import ExcludedRecords
from kdkit_ecg.datasets.folds import Folds
from kdkit_ecg.datasets.patient_table import Rows, read_rows
from kdkit_ecg.datasets.scan import Columns, find
from kdkit_ecg.labels import Year, scored_classes
from kdkit_ecg.records.header import Header

# What LRH-Net's authors do where it moves numbers: folds by record, thresholds tuned on the fold that is reported.
PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "resampling": "linear",
        "band": None,
        "scaling": "raw",
        "crop": "random",
        "selection": "test",
        "grouping": "record",
    }
)


@dataclass(frozen=True, eq=False)
class _Challenge(FoldedDataset):
    year: ClassVar[Year]

    _: KW_ONLY
    normalised_units: bool = False

    @classmethod
    def paper(cls, folder: Path, **options: Any) -> Self:
        """Return the data as LRH-Net's authors prepare it (PAPER), with these options changed."""
        return cls(folder, **{**PAPER, **options})

    @property
    def _year(self) -> str:
        return str(self.year)

    @property
    def _columns(self) -> Columns:
        return scored_classes(self.year)

    @cached_property
    def _rows(self) -> Rows:
        return read_rows(self._folders)

    @cached_property
    def _fit(self) -> tuple[list[Header], ExcludedRecords]:
        """The headers that can be learned from, whether they have a fold or not."""
        left = ExcludedRecords(self._folders)
        headers = find(self._columns, self._rows, left, normalised_units=self.normalised_units)
        named = any(header.name in self._rows for header in headers)
        if self.grouping == "patient" and self._rows and headers and not named:
            raise DataError(
                f"records.csv in {self._where} lists {len(self._rows)} records, {next(iter(self._rows))!r} first, and "
                f"none of them is among the {len(headers)} found, {headers[0].name!r} first; its column "
                "record holds the names that stand in the headers"
            )
        return headers, left


class Challenge2020(_Challenge):
    """Challenge 2020, 24 classes: twelve leads, (12, length) samples at `rate` Hz, read when a split is asked for.

    folder: any tree of .hea headers with their .mat or .dat signals, or several. A records.csv at a root may name each
    record's patient (columns record and patient, and database where a name comes twice); else each is its own patient.
    band: Hz, applied at the record's own rate, or None. scaling: "zscore" per lead, or "raw" mV. resampling, crop,
    selection, grouping: as PAPER has them or corrected. augment: what changes training samples with the draw.
    folds: a file of folds (Folds), or how many to make of the records found, 5 by default; test is `fold`, select the
    next one, train the others. shares: of train, select and test instead, by chance alone.
    normalised_units: also take records in standard deviations (NU). strict: raise DataError where any is left out.
    draws: how many windows of a record training sees. seed: of the splits and the windows.
    store: where prepared signals are kept, a folder or the user's cache; None prepares anew and holds all in memory.

    Raises DataError for a folder without records, RecipeError for options that do not exist.
    """

    year = 2020


class Challenge2021(_Challenge):
    """Challenge 2021, 26 classes; otherwise as Challenge2020."""

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
    """Return multi-label stratified folds of the records in one or several folders; `.write(path)` puts them in a file.

    k: how many. year: of the Challenge whose classes are evened out. keep: folds, or a file of them, whose records and
    patients stay where they are. options: others of Challenge2020, such as grouping="record", normalised_units=True.
    """
    challenge = Challenge2020 if year == 2020 else Challenge2021
    kept = keep if keep is None or isinstance(keep, Folds) else Folds.read(keep)
    return challenge(folder, folds=k, seed=seed, selection="test", **options).made_folds(kept)
