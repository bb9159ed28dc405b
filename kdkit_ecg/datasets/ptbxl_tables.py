"""Read PTB-XL's two tables: what its SCP statements mean, and what is known of each record."""

import ast
import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.records.header import Sex, known_age

Labels = Literal["superdiagnostic", "subdiagnostic", "diagnostic", "form", "rhythm", "all"]

# Which column of scp_statements.csv names the class of a diagnostic statement.
_AGGREGATED = {"superdiagnostic": "diagnostic_class", "subdiagnostic": "diagnostic_subclass"}


class Row(NamedTuple):
    """What ptbxl_database.csv says of a record: fold is strat_fold, low and high the files at 100 and 500 Hz."""

    patient: str
    age: float | None
    sex: Sex | None
    codes: tuple[str, ...]
    fold: int
    low: str
    high: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Statements:
    """The classes that SCP statements are taken for. names: in alphabetical order. class_of: statement -> class."""

    names: tuple[str, ...]
    class_of: Mapping[str, str]

    def row(self, codes: Iterable[str]) -> NDArray[np.float32]:
        """Return (classes,) float32 of 0 and 1; statements that are no class add nothing."""
        of = {self.class_of[code] for code in codes if code in self.class_of}
        return np.array([name in of for name in self.names], dtype=np.float32)


def read_statements(path: Path, labels: Labels) -> Statements:
    """Return the classes of one kind of label (Strodthoff et al. 2021, section II.B)."""
    class_of: dict[str, str] = {}
    for row in _table(path, ("diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass")):
        code = row[next(iter(row))]  # the first column has no name
        kind = "diagnostic" if labels in _AGGREGATED else labels
        if labels == "all" or row[kind] not in ("", "0", "0.0"):
            name = row[_AGGREGATED[labels]] if labels in _AGGREGATED else code
            if name:
                class_of[code] = name
    if not class_of:
        raise DataError(f"{path} has no statement that is {labels}")
    return Statements(names=tuple(sorted(set(class_of.values()))), class_of=class_of)


def read_database(path: Path) -> dict[str, Row]:
    """Return the records by the names that the Challenge gives them: HR00001 is ecg_id 1."""
    needed = ("ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_lr", "filename_hr")
    rows: dict[str, Row] = {}
    for row in _table(path, needed):
        try:
            rows[f"HR{int(row['ecg_id']):05}"] = _row(row)
        except (ValueError, SyntaxError) as error:
            raise DataError(f"{path}, the record with ecg_id {row['ecg_id']!r}, cannot be read: {error}") from error
    return rows


def _row(row: Mapping[str, str]) -> Row:
    sexes: dict[str, Sex] = {"0": "male", "1": "female"}
    statements = ast.literal_eval(row["scp_codes"])
    if not isinstance(statements, dict):
        raise ValueError(f"scp_codes are written as {{'NORM': 100.0}}, not {row['scp_codes']!r}")
    return Row(
        patient=row["patient_id"].removesuffix(".0"),  # pandas writes whole numbers so where one is missing
        age=known_age(row["age"]),
        sex=sexes.get(row["sex"].removesuffix(".0")),
        codes=tuple(map(str, statements)),
        fold=int(float(row["strat_fold"])),
        low=row["filename_lr"],
        high=row["filename_hr"],
    )


def _table(path: Path, needed: Iterable[str]) -> Iterable[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"there is no {path}; PTB-XL's folder holds ptbxl_database.csv and scp_statements.csv")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            rows = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no table in UTF-8: {error}") from error
    lacking = sorted(set(needed) - set(table.fieldnames or ()))
    if lacking:
        raise DataError(f"{path} lacks the column {lacking[0]}; it has {', '.join(table.fieldnames or ())}")
    return rows
