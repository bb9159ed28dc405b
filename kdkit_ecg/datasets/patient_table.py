"""Read records.csv, the table with the patient of each record."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdkit import DataError
from kdkit_ecg.utils.record_files import record_name
from kdkit_ecg.utils.tables import is_missing

PatientTable = Mapping[str, Mapping[str, str]]  # record -> {"patient": ..., "database": ...}


def read_patient_table(folders: Sequence[Path]) -> PatientTable:
    """Return the rows of records.csv at the root of each folder, by record; empty if there is no such file.

    The columns record and patient are required; database, the folder that contains the record, is optional. A record
    may be written with the suffix .hea, .mat or .dat. A patient that is missing, also as "nan" or "Unknown", is "".
    Raises DataError, which names the file and the line, for a file that cannot be read and for two rows that differ
    about one record.
    """
    rows: dict[str, Mapping[str, str]] = {}
    sources: dict[str, str] = {}  # record -> the line and file of its row, for error messages
    for path in [folder / "records.csv" for folder in folders]:
        if path.is_file():
            _read_file(path, rows, sources)
    return rows


def _read_file(path: Path, rows: dict[str, Mapping[str, str]], sources: dict[str, str]) -> None:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}, is not UTF-8 ({error.reason}); save the table as CSV in UTF-8"
        ) from error
    table = csv.reader(io.StringIO(text, newline=""))
    try:
        columns = [cell.strip() for cell in next(table, [])]
        if not {"record", "patient"} <= set(columns):
            raise DataError(f"{path} needs the columns record and patient, but has {', '.join(columns)}")
        for cells in table:
            # Not strict: spreadsheets drop empty cells at the end of a line.
            row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
            record = record_name(row.get("record", ""))
            # "nan", "Unknown" and the like are not the name of one patient with all of these records.
            values = {
                column: "" if is_missing(row.get(column, "")) else row[column] for column in ("patient", "database")
            }
            if not record:
                continue
            # Two equal rows are harmless. Two different ones would make the splits depend on their order.
            if rows.setdefault(record, values) != values:
                raise DataError(
                    f"{path}, line {table.line_num}: record {record} has {_description(values)}, but "
                    f"{_description(rows[record])} in {sources[record]}; remove the wrong row"
                )
            sources.setdefault(record, f"line {table.line_num} of {path}")
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}, cannot be parsed as CSV: {error}") from error


def _description(row: Mapping[str, str]) -> str:
    return f"patient {row['patient']!r}" + (f" in database {row['database']!r}" if row["database"] else "")
