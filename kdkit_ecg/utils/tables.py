"""Read CSV tables, such as the table of patients, and recognise missing values."""

import ast
import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from kdkit import DataError
from kdkit.errors import first_line
from kdkit.utils.files import is_file
from kdkit_ecg.utils.messages import shown
from kdkit_ecg.utils.record_files import record_name

# What spreadsheets, pandas, R, databases and people write for an unknown value.
_MISSING = re.compile(
    r"|nan|#?n/?a|n\.a\.|<na>|nat|none|null|nil|unk(nown)?|missing|not available|undefined|\?|--?|\.", re.IGNORECASE
)
# Usual names of the patient column, in lower case: overlooking one would divide patients.
PATIENT_COLUMNS = ("patient", "patient_id", "subject", "subject_id")

MAX_LITERAL = 10_000  # characters of a list in a cell: the time and depth of literal_eval grow with the text

_WHOLE_NUMBER = re.compile(r"0*([0-9]+)(\.0)?")


PatientTable = Mapping[str, Mapping[str, str]]  # record -> {"patient": ..., "database": ...}


class Table(NamedTuple):
    """The names of the columns, and each row: its line in the file, and its cells by column."""

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]


def read_table(path: Path) -> Table:
    """Read a CSV table in UTF-8. Raises DataError, which names the file, and the line if one is at fault."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return parse_table(raw.decode("utf-8-sig"))  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}, is not UTF-8 ({error.reason}); save the table as CSV in UTF-8"
        ) from error
    except DataError as error:
        raise DataError(f"{path}, {error}") from error


def read_patient_table(folders: Sequence[Path]) -> PatientTable:
    """Return the rows of records.csv at the root of each folder, by record; empty if there is no such file.

    The columns record and patient are required; database, the folder that contains the record, is optional. A record
    may be written with the suffix .hea, .mat or .dat. A missing patient, including "nan" or "Unknown", is "". Raises
    DataError, which names the file and the line, for a file that cannot be read and for two different rows of one
    record.
    """
    rows: dict[str, Mapping[str, str]] = {}
    sources: dict[str, str] = {}  # record -> the line and file of its row, for error messages
    for path in [folder / "records.csv" for folder in folders if is_file(folder / "records.csv")]:
        table = read_table(path)
        if not {"record", "patient"} <= set(table.columns):
            raise DataError(f"{path} needs the columns record and patient, but has {', '.join(table.columns)}")
        for line, cells in table.rows:
            record = record_name(cells["record"])
            if not record:
                continue
            database = cells.get("database", "")
            # "nan", "Unknown" and the like are not the name of one patient with all of these records.
            row = {"patient": patient_name(cells["patient"]), "database": "" if is_missing(database) else database}
            # Two equal rows are harmless. Two different ones would make the splits depend on their order.
            if rows.setdefault(record, row) != row:
                raise DataError(
                    f"{path}, line {line}: record {record} has {_description(row)}, but {_description(rows[record])} "
                    f"in {sources[record]}; remove the wrong row"
                )
            sources.setdefault(record, f"line {line} of {path}")
    return rows


def _description(row: Mapping[str, str]) -> str:
    return f"patient {row['patient']!r}" + (f" in database {row['database']!r}" if row["database"] else "")


def parse_table(text: str) -> Table:
    """Return the table in a text, with the delimiter comma, semicolon or tab, and without spaces around cells.

    Raises DataError, which names the line.
    """
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = []
    try:
        columns = [cell.strip() for cell in next(reader, [])]
        for cells in filter(None, reader):  # without empty lines
            # A delimiter in a cell without quotes would move all later cells to other columns.
            if "".join(cells[len(columns) :]).strip():
                raise DataError(
                    f"line {reader.line_num}, has {len(cells)} cells, but the first line has {len(columns)} columns; "
                    f"put quotes around a cell with {delimiter!r}"
                )
            # Not strict: spreadsheets drop and add empty cells at the end of a line.
            by_column = dict(zip(columns, map(str.strip, cells), strict=False))
            rows.append((reader.line_num, {column: by_column.get(column, "") for column in columns}))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num}, cannot be parsed as CSV: {error}") from error
    return Table(columns, rows)


def parse_literal(text: str, column: str) -> Any:
    """Return the value of a cell with a list, a set or a dict of Python or JSON. Raises ValueError for other texts."""
    if len(text) > MAX_LITERAL:
        raise ValueError(f"expected {column} of at most {MAX_LITERAL:,} characters, got {len(text):,}")
    try:
        with suppress(json.JSONDecodeError):
            return json.loads(text)
        return ast.literal_eval(text)
    # The exceptions in its documentation; the last two are for a text that nests too deeply.
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"expected {column} in the form of Python, got {shown(text)}: {first_line(error)}") from error


def is_missing(text: str) -> bool:
    """Return whether a text means that the value is not known, such as "", "nan", "NA" or "Unknown"."""
    return _MISSING.fullmatch(text.strip()) is not None


def patient_name(text: str) -> str:
    """Return the name or number of a patient in a table, "" if it is not known.

    pandas writes patient 7 as 7.0 if another patient in the table is unknown, and spreadsheets write 0007 as 7.
    """
    number = _WHOLE_NUMBER.fullmatch(text)
    return "" if is_missing(text) else number[1] if number else text
