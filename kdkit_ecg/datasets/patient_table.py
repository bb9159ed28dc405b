"""Read records.csv, the table with the patient of each record."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdkit import DataError
from kdkit_ecg.utils.record_files import record_name
from kdkit_ecg.utils.tables import is_missing, patient_name, read_table

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
    for path in [folder / "records.csv" for folder in folders if (folder / "records.csv").is_file()]:
        table = read_table(path)
        if not {"record", "patient"} <= set(table.columns):
            raise DataError(f"{path} needs the columns record and patient, but has {', '.join(table.columns)}")
        for line, cells in table.rows:
            record = record_name(cells["record"])
            if not record:
                continue
            # "nan", "Unknown" and the like are not the name of one patient with all of these records.
            database = cells.get("database", "")
            row = {
                "patient": patient_name(cells["patient"]),
                "database": "" if is_missing(database) else database,
            }
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
