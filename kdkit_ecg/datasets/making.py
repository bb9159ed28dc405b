"""Make a file of folds for the records of some folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdkit_ecg.datasets.challenge import Challenge2020, Challenge2021
from kdkit_ecg.datasets.folded import FOLDS
from kdkit_ecg.datasets.recorded import Folder
from kdkit_ecg.folds import Folds
from kdkit_ecg.labels import Year


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
