"""SNOMED CT codes as the scored classes of the PhysioNet/CinC Challenges 2020 and 2021."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError

Year = Literal[2020, 2021]

NORMAL = "426783006"  # sinus rhythm, the class the challenge metric measures from


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The scored classes of one year, in the order of the official scorer's table.

    codes: the SNOMED CT code that stands for each class, the first of those merged into it.
    names: its abbreviation, such as "AF". columns: every scored code -> the column of its class.
    """

    year: Year
    codes: tuple[str, ...]
    names: tuple[str, ...]
    columns: Mapping[str, int]

    def row(self, codes: Iterable[str]) -> NDArray[np.float32]:
        """Return (classes,) float32 of 0 and 1; codes that are not scored add nothing."""
        labels = np.zeros(len(self.codes), dtype=np.float32)
        labels[[self.columns[code] for code in codes if code in self.columns]] = 1
        return labels

    def __len__(self) -> int:
        return len(self.codes)


@cache
def scored_classes(year: Year) -> Classes:
    """Return the 24 classes of 2020 or the 26 of 2021, equivalent codes merged. Other years raise RecipeError."""
    if year not in (2020, 2021):
        raise RecipeError(f"the scored classes of 2020 and of 2021 are known, not those of {year}")
    rows = [row for row in csv.DictReader(table("classes.csv")) if row[f"column_{year}"]]
    columns = {row["snomed_ct"]: int(row[f"column_{year}"]) for row in rows}
    first: dict[int, dict[str, str]] = {}
    for row in rows:
        first.setdefault(columns[row["snomed_ct"]], row)
    ordered = [first[column] for column in sorted(first)]
    return Classes(
        year=year,
        codes=tuple(row["snomed_ct"] for row in ordered),
        names=tuple(row["abbreviation"] for row in ordered),
        columns=MappingProxyType(columns),
    )


def table(name: str) -> list[str]:
    """Return the lines of a table in kdkit_ecg/data."""
    return Path(__file__).with_name("data").joinpath(name).read_text(encoding="utf-8").splitlines()
