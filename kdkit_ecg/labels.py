"""Encode the diagnoses of a record as labels, such as SNOMED CT codes as the scored classes of the Challenges."""

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

NORMAL = "426783006"  # sinus rhythm, the reference class of the challenge metric

# Permutation of the Verhoeff check digit (SNOMED CT Release File Specification, "Check-digit").
_VERHOEFF_PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """Classes, and the codes of diagnoses that mean each. columns: code -> the column of its class in the labels."""

    names: tuple[str, ...]
    columns: Mapping[str, int]

    def row(self, codes: Iterable[str]) -> NDArray[np.float32]:
        """Return the labels of a record with these codes, (classes,) float32 of 0 and 1. Other codes are ignored."""
        labels = np.zeros(len(self.names), dtype=np.float32)
        labels[[self.columns[code] for code in codes if code in self.columns]] = 1
        return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Numbers by name: those of a regression, or 0 and 1 of classes if some are unknown. names: of their columns."""

    names: tuple[str, ...]

    def row(self, codes: Iterable[str]) -> NDArray[np.float32]:
        """Return (names,) float32 from their texts, in the order of the names; "nan" is unknown."""
        return np.array([float(code) for code in codes], dtype=np.float32)


LabelEncoder = Classes | Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredClasses(Classes):
    """The scored classes of a Challenge, named by abbreviations such as "AF", in the order of the official scorer.

    codes: the SNOMED CT code of each class, the first of the equivalent codes merged into it.
    """

    codes: tuple[str, ...]


@cache
def scored_classes(year: Year) -> ScoredClasses:
    """Return the 24 classes of 2020 or the 26 of 2021, equivalent codes merged. Raises RecipeError for other years."""
    if year not in (2020, 2021):
        raise RecipeError(f"expected the year of a Challenge with scored classes, 2020 or 2021, got {year}")
    rows = [row for row in csv.DictReader(table("classes.csv")) if row[f"column_{year}"]]
    columns = {row["snomed_ct"]: int(row[f"column_{year}"]) for row in rows}
    # Several codes share a column if they are scored as one class. The first one in the file names the class.
    first_rows: dict[int, dict[str, str]] = {}
    for row in rows:
        first_rows.setdefault(columns[row["snomed_ct"]], row)
    ordered = [first_rows[column] for column in sorted(first_rows)]
    return ScoredClasses(
        codes=tuple(row["snomed_ct"] for row in ordered),
        names=tuple(row["abbreviation"] for row in ordered),
        columns=MappingProxyType(columns),
    )


def table(name: str) -> list[str]:
    """Return the lines of a table in kdkit_ecg/data."""
    return Path(__file__).with_name("data").joinpath(name).read_text(encoding="utf-8").splitlines()


def is_snomed_code(text: str) -> bool:
    """Return whether a text is a SNOMED CT identifier: 6 to 18 digits, the first not 0, the last a check digit."""
    if not (text.isascii() and text.isdecimal() and 6 <= len(text) <= 18) or text[0] == "0":
        return False
    # Verhoeff's algorithm multiplies in the dihedral group of a pentagon: digits 0 to 4 are rotations, 5 to 9
    # reflections. Each digit is first permuted as often as its position from the right.
    product = 0
    for position, character in enumerate(reversed(text)):
        digit = int(character)
        for _ in range(position % 8):  # the permutation has order 8
            digit = _VERHOEFF_PERMUTATION[digit]
        rotation = (product + digit if product < 5 else product - digit) % 5
        product = rotation if (product < 5) == (digit < 5) else rotation + 5
    return product == 0
