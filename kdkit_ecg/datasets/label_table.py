"""Read the table with the labels of records: a column per class, or the names of classes in one column."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError, RecipeError
from kdkit.errors import did_you_mean
from kdkit_ecg.records.header import parse_age
from kdkit_ecg.records.signal_lines import shown
from kdkit_ecg.records.source import Sex
from kdkit_ecg.utils.record_files import ARRAY_SUFFIXES, record_name
from kdkit_ecg.utils.tables import is_missing

# What a column is for, and its name unless the user gives another one.
ROLES: Mapping[str, str] = MappingProxyType(
    {
        "record": "record",
        "label": "label",
        "patient": "patient",
        "age": "age",
        "sex": "sex",
        "database": "database",
        "fold": "fold",
    }
)
_SEXES: Mapping[str, Sex] = MappingProxyType(
    {"f": "female", "female": "female", "woman": "female", "m": "male", "male": "male", "man": "male"}
)
_FLAGS = MappingProxyType(
    {"0": False, "0.0": False, "false": False, "no": False, "1": True, "1.0": True, "true": True, "yes": True}
)
_SEPARATOR = re.compile(r"[;|]")  # between labels; a comma, which a name may have, separates only without these


class LabelRow(NamedTuple):
    """The row of a record. labels: None if unknown. patient, database: "" if unknown. age in years."""

    labels: tuple[str, ...] | None
    patient: str = ""
    database: str = ""
    age: float | None = None
    sex: Sex | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedClasses:
    """Classes by name, as the labels of records are written. names: in the order of the label columns."""

    names: tuple[str, ...]

    def row(self, codes: Iterable[str]) -> NDArray[np.float32]:
        """Return (classes,) float32 of 0 and 1. Labels that are no class are ignored."""
        present = set(codes)
        return np.array([name in present for name in self.names], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """The rows of a table by record, as it names them, without suffix, and the classes."""

    path: Path
    rows: Mapping[str, LabelRow]
    classes: NamedClasses
    has_patients: bool


def read_label_table(path: Path, columns: Mapping[str, str], classes: Sequence[str]) -> LabelTable:
    """Return the labels of records. A table has a column for each class, or one with the names of classes.

    columns: role in ROLES -> name of the column. classes: names; () for all in the table, sorted or in the order of
    their columns. A record may have several rows, if these differ in nothing but the names of classes.
    Raises DataError, which names the file and the line, for a table that cannot be read or contradicts itself, and
    RecipeError for columns and classes that it does not have.
    """
    names, rows = _read_rows(path)
    for role, column in columns.items():
        if role not in ROLES:
            raise RecipeError(f"columns has the unknown key {role!r}; {did_you_mean(role, ROLES)}")
        if column not in names:
            raise RecipeError(f"{path} has no column {column!r}; {did_you_mean(column, names)}")
    roles = {role: columns.get(role, default) for role, default in ROLES.items()}
    if "label" not in columns and "labels" in names:
        roles["label"] = "labels"
    if roles["record"] not in names:
        raise DataError(
            f"{path} has no column of records; it has {', '.join(names)}. Name one, such as columns={{'record': "
            f"{names[0]!r}}}"
        )
    flags = _flag_columns(rows, names, roles, classes)
    if not flags and roles["label"] not in names:
        raise DataError(
            f"{path} has neither a column 'label' nor columns of 0 and 1 by class; it has {', '.join(names)}. Name the "
            "column, such as columns={'label': 'diagnosis'}"
        )
    parsed: dict[str, LabelRow] = {}
    for line, cells in rows:
        record = table_name(cells[roles["record"]])
        if not record:
            continue
        labels = _flags(path, line, cells, flags) if flags else _names(cells[roles["label"]], classes)
        patient, database = (_known(cells, roles[role]) for role in ("patient", "database"))
        row = LabelRow(labels, patient, database, *_person(cells, roles))
        parsed[record] = _merged(path, line, record, parsed.get(record), row, several=not flags)
    found = sorted({label for row in parsed.values() for label in row.labels or ()})
    for name in classes:
        if name not in (flags or found):
            raise RecipeError(f"{path} has no class {name!r}; {did_you_mean(name, flags or found)}")
    if len(set(classes)) < len(classes):
        raise RecipeError(f"classes must be different names, got {list(classes)}")
    chosen = tuple(classes or flags or found)
    if not chosen:
        raise DataError(f"{path} has no label in its column {roles['label']!r}")
    return LabelTable(
        path=path,
        rows=parsed,
        classes=NamedClasses(names=chosen),
        has_patients=any(row.patient for row in parsed.values()),
    )


def table_name(text: str) -> str:
    """Return the name of a record as a table writes it: with slashes, and without suffix and spaces around it."""
    name = record_name(text).replace("\\", "/").removeprefix("./")
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in ARRAY_SUFFIXES else name


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the names of the columns, and the lines of the rows with their cells by column."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets write a byte order mark
    except FileNotFoundError as error:
        raise DataError(
            f"the table of labels {path} does not exist; expected a CSV with a row for each record"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a CSV table in UTF-8: {error}") from error
    first_line = text.partition("\n")[0]
    table = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first_line.count))
    rows = []
    try:
        names = [cell.strip() for cell in next(table, [])]
        if len(set(names)) < max(1, len(names)):
            raise DataError(f"{path} needs a first line with a different name for each column, got {shown(first_line)}")
        for cells in table:
            # Not strict: spreadsheets drop empty cells at the end of a line.
            by_column = dict(zip(names, (cell.strip() for cell in cells), strict=False))
            rows.append((table.line_num, {name: by_column.get(name, "") for name in names}))
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}, cannot be parsed as CSV: {error}") from error
    if not rows:
        raise DataError(f"{path} has no row below its first line")
    return names, rows


def _flag_columns(
    rows: Sequence[tuple[int, Mapping[str, str]]],
    names: Sequence[str],
    roles: Mapping[str, str],
    classes: Sequence[str],
) -> list[str]:
    """Return the columns that are classes, with 0 or 1 for each record; none if the classes are in one column."""
    if classes:
        return list(classes) if set(classes) <= set(names) else []
    if roles["label"] in names:
        return []
    others = [name for name in names if name not in roles.values() and name != "is_male"]
    return [name for name in others if all(cells[name].lower() in _FLAGS or not cells[name] for _, cells in rows)]


def _flags(path: Path, line: int, cells: Mapping[str, str], flags: Sequence[str]) -> tuple[str, ...] | None:
    """Return the classes with a 1, None if a cell is empty or has a word for a missing value."""
    values = {name: cells[name].lower() for name in flags}
    if any(is_missing(value) for value in values.values()):
        return None
    wrong = next((name for name, value in values.items() if value not in _FLAGS), None)
    if wrong is not None:
        raise DataError(f"{path}, line {line}: expected 0 or 1 in column {wrong!r}, got {shown(cells[wrong])}")
    return tuple(name for name, value in values.items() if _FLAGS[value])


def _names(text: str, classes: Sequence[str]) -> tuple[str, ...] | None:
    """Return the labels in a cell, None if it is empty."""
    if is_missing(text):
        return None
    if text in classes:
        return (text,)
    parts = _SEPARATOR.split(text) if _SEPARATOR.search(text) else text.split(",")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _known(cells: Mapping[str, str], column: str) -> str:
    """Return the text in a column, "" if it is missing."""
    text = cells.get(column, "")
    return "" if is_missing(text) else text.removesuffix(".0")  # pandas writes integers as floats if one is missing


def _person(cells: Mapping[str, str], roles: Mapping[str, str]) -> tuple[float | None, Sex | None]:
    """Return age and sex, None if unknown. The table of CODE-15% has a column is_male instead of the sex."""
    is_male = _FLAGS.get(cells.get("is_male", "").lower())
    from_flag: Sex | None = None if is_male is None else "male" if is_male else "female"
    return parse_age(cells.get(roles["age"], "")), _SEXES.get(cells.get(roles["sex"], "").lower(), from_flag)


def _merged(path: Path, line: int, record: str, first: LabelRow | None, row: LabelRow, *, several: bool) -> LabelRow:
    """Return a row together with the rows before it of the same record. several: whether each may have other labels."""
    if first is None or first == row:
        return row
    if first._replace(labels=None) != row._replace(labels=None) or not several:
        raise DataError(
            f"{path}, line {line}: record {shown(record)} has another row, which differs; remove one of them"
        )
    return first._replace(labels=tuple(dict.fromkeys([*(first.labels or ()), *(row.labels or ())])) or None)
