"""Read the two tables of PTB-XL: the meaning of SCP statements, and the patient, labels and fold of each record."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Self

from kdkit import DataError
from kdkit.errors import first_line
from kdkit_ecg.labels import Classes
from kdkit_ecg.person import Sex, parse_age
from kdkit_ecg.utils.record_files import table_name
from kdkit_ecg.utils.tables import parse_literal, patient_name, read_table

_ID = re.compile(r"[0-9]{1,9}")
_FOLD = re.compile(r"(10|[1-9])(?:\.0*)?")  # pandas may write 10.0

Labels = Literal["superdiagnostic", "subdiagnostic", "diagnostic", "form", "rhythm", "all"]

# The column of scp_statements.csv with the class of a diagnostic statement.
_AGGREGATED = {"superdiagnostic": "diagnostic_class", "subdiagnostic": "diagnostic_subclass"}


class DatabaseRow(NamedTuple):
    """A row of ptbxl_database.csv. fold is strat_fold; the files are relative paths without suffix.

    patient: "" if unknown.
    """

    patient: str
    age: float | None
    sex: Sex | None
    codes: tuple[str, ...]
    fold: int
    file_100_hz: str
    file_500_hz: str

    @classmethod
    def parse(cls, row: Mapping[str, str]) -> Self:
        """Return a row from the texts in its columns. Raises ValueError."""
        sexes: dict[str, Sex] = {"0": "male", "1": "female"}
        statements = parse_literal(row["scp_codes"], "scp_codes")
        if not isinstance(statements, dict):
            raise ValueError(f"expected scp_codes in the form {{'NORM': 100.0}}, got {row['scp_codes']!r}")
        fold = _FOLD.fullmatch(row["strat_fold"])
        if not fold:
            raise ValueError(f"expected a number from 1 to 10 in strat_fold, got {row['strat_fold'][:60]!r}")
        for file in (row["filename_lr"], row["filename_hr"]):
            if file.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", file):
                raise ValueError(f"expected the path of a record in the folder of the table, got {file[:60]!r}")
        return cls(
            patient=patient_name(row["patient_id"]),
            age=parse_age(row["age"]),
            sex=sexes.get(row["sex"].removesuffix(".0")),  # pandas writes integers as floats if one of them is missing
            codes=tuple(map(str, statements)),  # without their likelihoods; 0 means "not known"
            fold=int(fold[1]),
            file_100_hz=table_name(row["filename_lr"]),
            file_500_hz=table_name(row["filename_hr"]),
        )


def read_statements(path: Path, labels: Labels) -> Classes:
    """Return the classes of one kind of label (Strodthoff et al. 2021, section II.B), in alphabetical order."""
    class_of: dict[str, str] = {}
    for row in _read_table(path, ("diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass")):
        code = row[next(iter(row))]  # the first column has no name
        kind = "diagnostic" if labels in _AGGREGATED else labels
        # A statement may be of several kinds; each kind is a column with 1.0 or nothing.
        if labels == "all" or row[kind] not in ("", "0", "0.0"):
            name = row[_AGGREGATED[labels]] if labels in _AGGREGATED else code
            if name:
                class_of[code] = name
    if not class_of:
        raise DataError(f"{path} has no statement of the kind {labels}")
    names = tuple(sorted(set(class_of.values())))
    return Classes(names=names, columns={code: names.index(name) for code, name in class_of.items()})


def read_database(path: Path) -> dict[str, DatabaseRow]:
    """Return the records by their names in the Challenge: HR00001 is ecg_id 1.

    Raises DataError for a row that cannot be read, and for two different rows of one record.
    """
    required = ("ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_lr", "filename_hr")
    rows: dict[str, DatabaseRow] = {}
    for row in _read_table(path, required):
        try:
            if not _ID.fullmatch(row["ecg_id"]):
                raise ValueError("expected a number of up to 9 digits")
            parsed = DatabaseRow.parse(row)
            if rows.setdefault(f"HR{int(row['ecg_id']):05}", parsed) != parsed:
                raise ValueError("it has another, different row; remove one")
        except ValueError as error:
            raise DataError(
                f"{path}, the record with ecg_id {row['ecg_id'][:60]!r}, cannot be read: {first_line(error)}"
            ) from error
    return rows


def _read_table(path: Path, required: Iterable[str]) -> Iterable[dict[str, str]]:
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; the folder of PTB-XL contains ptbxl_database.csv and scp_statements.csv"
        )
    columns, rows = read_table(path)
    missing = sorted(set(required) - set(columns))
    if missing:
        raise DataError(f"{path} lacks the column {missing[0]}; it has {', '.join(columns)}")
    return [cells for _, cells in rows]
