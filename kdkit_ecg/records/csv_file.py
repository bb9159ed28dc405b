"""Read CSV tables with a column per lead, as written by spreadsheets, pandas and rdsamp.

np.loadtxt reads the numbers; here the leads are found in the first lines, and decimal commas are recognized.
"""

import codecs
import csv
import io
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit.errors import first_line
from kdkit_ecg.leads import LEADS, standard_names
from kdkit_ecg.records.signal_lines import MAX_LINE
from kdkit_ecg.records.source import UNITS, VOLTAGES
from kdkit_ecg.utils.messages import shown
from kdkit_ecg.utils.tables import is_missing

_DELIMITERS = ";\t, "  # in this order: a line with a semicolon may have commas in its numbers or names

# A name with its unit, such as "I [mV]", and the names of columns with the time or number of a sample, which are not
# leads. pandas writes its index below an empty name.
_WITH_UNIT = re.compile(r"(?P<name>.+?)\s*[\[(](?P<unit>[^\[\]()]+)[\])]")
_TIME = re.compile(
    r"|#|t([\s_]*(s|sec|ms))?|((elapsed|relative|absolute)[\s_-]*)?time([\s_-]*stamps?)?([\s_]*(s|sec|seconds|ms))?"
    r"|date([\s_-]*time)?|zeit|temps|tiempo|tempo"
    r"|index|unnamed: \d+|samples?([\s_-]*(#|no\.?|numbers?|index))?|(milli)?seconds?|secs?|ms",
    re.IGNORECASE,
)
_SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "milliseconds": 1e-3}  # in a unit of time
_INDEX = re.compile(r"|#|index|unnamed: \d+|samples?.*", re.IGNORECASE)  # the names in _TIME that are no time
_STEPS_IN_SECONDS = (1 / 2000, 1 / 50)  # of a time without a unit: in ms or samples, they would be larger
_SAME_RATE = 0.02  # the largest relative difference between two rates, because times are rounded
# A number with a decimal comma, not a thousands separator as in "1,234".
_DECIMAL_COMMA = re.compile(r"[-+]?((0|[0-9]{4})[0-9]*,[0-9]+|[0-9]+,([0-9]{1,2}|[0-9]{4,}))([eE][-+]?[0-9]+)?")
_ROWS = 1_000  # that are searched for a number with a decimal comma; a record has such numbers in almost every row


class CsvTable(NamedTuple):
    """The layout of a table. columns: the positions of the leads. width: number of columns. lines: without samples.

    time: the position of the column of the time, and its unit in seconds, None if unknown; None without a column.
    """

    delimiter: str
    leads: tuple[str, ...]
    columns: tuple[int, ...]
    width: int
    lines: int
    encoding: str
    time: tuple[int, float | None] | None = None

    def has_decimal_commas(self, path: Path, columns: Sequence[int]) -> bool:
        """Return whether these columns of the table in this file have a number with a decimal comma."""
        with path.open(encoding=self.encoding, newline="") as file:
            rows = csv.reader(file, delimiter=self.delimiter, skipinitialspace=True)
            return any(
                _DECIMAL_COMMA.fullmatch(row[column].strip())
                for row in islice(rows, self.lines, self.lines + _ROWS)
                for column in columns
                if column < len(row)
            )


def open_csv(path: Path, expected: Sequence[str], unit: str) -> CsvTable:
    """Return which columns of a table are leads: those of its first line, or `expected` if that line has numbers.

    A first line of 0, 1, 2 and so on has the numbers of the columns, not samples.
    Columns of the time or number of a sample, and of units other than voltage, are left out, unless they are expected.
    Raises DataError if the first lines contradict each other or the unit, or name a lead twice.
    """
    encoding = _encoding_of(path)
    with path.open(encoding=encoding, newline="") as file:
        lines = [file.readline(MAX_LINE + 1) for _ in range(3)]
    if max(map(len, lines)) > MAX_LINE or not lines[0].strip():
        raise DataError(f"expected a first line of at most {MAX_LINE:,} characters with a column for each lead")
    # A first cell without a name, as of the index of pandas, leaves only its delimiter.
    delimiter = next((delimiter for delimiter in _DELIMITERS if delimiter in lines[0].strip(" \r\n")), ",")
    cells, *others = [
        [cell.strip().strip("'") for cell in row]  # rdsamp writes single quotes
        for line in lines
        if line.strip()
        for row in csv.reader([line], delimiter=delimiter, skipinitialspace=True)
    ]
    # A comma that is not a delimiter may be a decimal comma.
    if all(_is_number(cell if delimiter == "," else cell.replace(",", ".")) for cell in cells):
        if len(cells) != len(expected):
            raise DataError(
                f"it has {len(cells)} columns and no line of names; expected the {len(expected)} leads of --leads or "
                "ArrayFormat(leads=...)"
            )
        # pandas writes the numbers of columns without names. A single 0 may be a sample.
        is_numbered = len(cells) > 1 and cells == [str(column) for column in range(len(cells))]
        return CsvTable(delimiter, tuple(expected), tuple(range(len(cells))), len(cells), int(is_numbered), encoding)
    named = [_WITH_UNIT.fullmatch(cell) for cell in cells]
    names = standard_names(match["name"] if match else cell for match, cell in zip(named, cells, strict=True))
    columns = [column for column, name in enumerate(names) if name in expected or not _TIME.fullmatch(name)]
    below = others[0] if others else [""] * len(cells)
    # With more cells below than in the line of names, every lead would get the samples of another column.
    if len(below) != len(cells):
        raise DataError(f"expected {len(cells)} columns, as in its first line, got {len(below)}")
    # rdsamp writes a line of units below the line of names.
    below_leads = [below[column].replace(",", ".") for column in columns]
    has_units = any(cell.lower() in VOLTAGES for cell in below) and all(
        cell and not _is_number(cell) for cell in below_leads
    )
    units = [match["unit"] if match else cell if has_units else "" for match, cell in zip(named, below, strict=True)]
    # A column of another quantity, such as "HR [bpm]", is not a lead.
    columns = [column for column in columns if names[column] in (*LEADS, *expected) or units[column].lower() in UNITS]
    leads = tuple(names[column] for column in columns)
    if not leads or len({name.lower() for name in leads}) < len(leads):
        raise DataError(f"expected a different name for each column, got {shown(', '.join(cells))}")
    for written in filter(None, (units[column] for column in columns)):
        if UNITS.get(written.lower()) != UNITS[unit.lower()]:
            raise DataError(f"its first lines have the unit {shown(written)}, but it is described as {unit!r}")
    # The unit may be part of a name such as "time_ms".
    words = [
        unit_of.lower() or re.split(r"[\s_]", name.lower())[-1] for unit_of, name in zip(units, names, strict=True)
    ]
    times = [
        (column, _SECONDS.get(word))
        for column, (name, word) in enumerate(zip(names, words, strict=True))
        if column not in columns and _TIME.fullmatch(name) and not _INDEX.fullmatch(name)
    ]
    time = min(times, key=lambda column_and_unit: column_and_unit[1] is None, default=None)  # one with a unit first
    return CsvTable(delimiter, leads, tuple(columns), len(cells), 1 + has_units, encoding, time)


def read_csv(path: Path, expected: Sequence[str], unit: str, leads: Sequence[str], rate: float) -> NDArray[Any]:
    """Return the samples of a table, (leads, time). Empty cells and words for missing values are NaN.

    Numbers may have a decimal comma, unless all numbers with a comma could be thousands, such as "1,234".
    expected, unit: see `open_csv`. leads: those it returned. rate: in Hz, that of the time in the table if it has any.
    Raises DataError and the exceptions of numpy.
    """
    table = open_csv(path, expected, unit)
    if table.leads != tuple(leads):
        raise DataError("its first line was changed since it was opened")
    options: dict[str, Any] = {
        # None makes numpy take any number of spaces as one delimiter.
        "delimiter": None if table.delimiter == " " else table.delimiter,
        "skiprows": table.lines,
        "quotechar": '"',
        "comments": None,
        "encoding": table.encoding,
        "ndmin": 2,
    }
    # Without usecols, numpy refuses a line with a different number of columns.
    with warnings.catch_warnings(action="error"):  # numpy only warns about a table without numbers
        try:
            values = np.loadtxt(_source(path, table), **options)  # (time, columns)
        except ValueError:
            # Several times slower: a Python function for each cell. The cells of other columns may be any text.
            converters: dict[int | str, Callable[[str], Any]] = dict.fromkeys(range(table.width), lambda text: 0.0)
            has_commas = table.has_decimal_commas(path, table.columns)
            converter = (lambda text: _number(text.replace(",", "."))) if has_commas else _number
            converters |= dict.fromkeys(table.columns, converter)
            if table.time:
                has_commas_in_time = table.has_decimal_commas(path, table.time[:1])
                converters[table.time[0]] = (
                    (lambda text: _number_or_nan(text.replace(",", "."))) if has_commas_in_time else _number_or_nan
                )
            try:
                values = np.loadtxt(_source(path, table), converters=converters, **options)
            except ValueError as error:
                if re.search("[0-9],[0-9]", str(error)) is None:
                    advice = "expected one line of names, at most one of units, and then numbers"
                    raise DataError(f"{first_line(error)} {advice}") from error
                raise DataError(f"{error} Its comma may be of decimals or thousands; write decimal points") from error
    if values.shape[1] != table.width:
        raise DataError(f"expected {table.width} columns, as in its first line, got {values.shape[1]}")
    _require_rate(values, table, rate)
    return values[:, table.columns].T


def _source(path: Path, table: CsvTable) -> Any:
    """Return what numpy reads. In a table with one column, empty lines, which numpy skips, are invalid samples."""
    if table.width > 1:
        return path
    with path.open(encoding=table.encoding, newline="") as file:
        # Python's csv writes "\r\r\n" on Windows if a file is not opened with newline="".
        text = re.sub(r"\r+\n|\r", "\n", file.read().rstrip())
    return io.StringIO(re.sub(r"\n[ \t]*(?=\n)", "\nnan", text))


def _require_rate(values: NDArray[Any], table: CsvTable, rate: float) -> None:
    """Raise DataError if the time in a table, (time, columns), has another rate than its description."""
    if not table.time:
        return
    column, unit = table.time
    length = values[-1, column] - values[0, column]
    if unit is None:
        shortest, longest = _STEPS_IN_SECONDS
        unit = 1.0 if shortest <= length / max(1, len(values) - 1) <= longest else 0.0
    seconds = length * unit
    if seconds > 0:  # otherwise it starts again, or is not a number, or its unit is not known
        in_table = (len(values) - 1) / seconds
        if abs(in_table - rate) > _SAME_RATE * rate:
            raise DataError(f"its column of the time has {in_table:.4g} samples per second, but rate={rate:g}")


def _encoding_of(path: Path) -> str:
    """Return UTF-8, or what programs on Windows write: UTF-16 with a byte-order mark, or cp1252, as for the unit µV."""
    with path.open("rb") as file:
        first = file.read(3 * MAX_LINE)
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    with suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(first)  # the last character may be cut off
        return "utf-8-sig"
    return "cp1252"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str) -> float:
    return np.nan if is_missing(text) else float(text)


def _number_or_nan(text: str) -> float:
    return float(text) if _is_number(text) else np.nan
