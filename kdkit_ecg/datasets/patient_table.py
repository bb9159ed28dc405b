"""Read records.csv, the table that says of which patient each record is."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdkit import DataError

Rows = Mapping[str, Mapping[str, str]]


def read_rows(folders: Sequence[Path]) -> Rows:
    """Return the rows of records.csv at the root of each folder, by record; none where there is no such file.

    Its columns record and patient must be there; database, the folder a record belongs in, may be. A record is written
    with or without its .hea, .mat or .dat. Raises DataError, which names the file and the line, for what cannot be read
    and for two rows that say different things of one record.
    """
    rows: dict[str, Mapping[str, str]] = {}
    places: dict[str, str] = {}
    for path in [folder / "records.csv" for folder in folders]:
        if path.is_file():
            _read(path, rows, places)
    return rows


def _read(path: Path, rows: dict[str, Mapping[str, str]], places: dict[str, str]) -> None:
    table = csv.reader(io.StringIO(_decoded(path), newline=""))
    try:
        columns = [trial.strip() for trial in next(table, [])]
        if not {"record", "patient"} <= set(columns):
            raise DataError(f"{path} needs the columns record and patient, but has {', '.join(columns)}")
        for trials in table:
            row = dict(zip(columns, (trial.strip() for trial in trials), strict=False))
            name = re.sub(r"\.(hea|mat|dat)$", "", row.get("record", ""))
            known = {column: row.get(column, "") for column in ("patient", "database")}
            if not name:
                continue
            if rows.setdefault(name, known) != known:
                raise DataError(
                    f"{path}, line {table.line_num}: record {name} is {_told(known)}, but {_told(rows[name])} in "
                    f"{places[name]}; leave the one row that is right"
                )
            places.setdefault(name, f"line {table.line_num} of {path}")
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}, is no line of a table: {error}") from error


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")  # spreadsheets put a mark at the beginning
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}, is not UTF-8 ({error.reason}); save the table as CSV in UTF-8"
        ) from error


def _told(row: Mapping[str, str]) -> str:
    return f"of patient {row['patient']!r}" + (f" in {row['database']!r}" if row["database"] else "")
