"""Read CSV tables, and recognise missing values in them and in headers."""

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from kdkit import DataError

# What spreadsheets, pandas, R, databases and people write for a value that is not known.
_MISSING = re.compile(
    r"|nan|#?n/?a|n\.a\.|<na>|nat|none|null|nil|unk(nown)?|missing|not available|undefined|\?|--?|\.", re.IGNORECASE
)
_WHOLE_NUMBER = re.compile(r"([0-9]+)\.0")


class Table(NamedTuple):
    """The names of the columns, and each row: its line in the file, and its cells by column."""

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]


def read_table(path: Path) -> Table:
    """Read a CSV table in UTF-8. Raises DataError, which names the file and the line, and OSError."""
    raw = path.read_bytes()
    try:
        return parse_table(raw.decode("utf-8-sig"))  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}, is not UTF-8 ({error.reason}); save the table as CSV in UTF-8"
        ) from error
    except DataError as error:
        raise DataError(f"{path}, {error}") from error


def parse_table(text: str) -> Table:
    """Return the table in a text, with the delimiter comma, semicolon or tab, and without spaces around cells.

    Raises DataError, which names the line.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=text.partition("\n")[0].count))
    rows = []
    try:
        columns = [cell.strip() for cell in next(reader, [])]
        for cells in filter(None, reader):  # without empty lines
            # Not strict: spreadsheets drop empty cells at the end of a line.
            by_column = dict(zip(columns, map(str.strip, cells), strict=False))
            rows.append((reader.line_num, {column: by_column.get(column, "") for column in columns}))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num}, cannot be parsed as CSV: {error}") from error
    return Table(columns, rows)


def is_missing(text: str) -> bool:
    """Return whether a text means that the value is not known, such as "", "nan", "NA" or "Unknown"."""
    return _MISSING.fullmatch(text.strip()) is not None


def patient_name(text: str) -> str:
    """Return the name or number of a patient in a table, "" if it is not known.

    The patient 7 is 7.0 in a table that pandas wrote, if another patient in it is not known.
    """
    number = _WHOLE_NUMBER.fullmatch(text)
    return "" if is_missing(text) else number[1] if number else text
