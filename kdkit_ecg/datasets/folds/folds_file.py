"""Save folds in a file, so that different runs train and test on the same records."""

import csv
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from kdkit import DataError
from kdkit.utils.files import write
from kdkit.utils.paths import user_path
from kdkit.utils.printable import printable
from kdkit_ecg.datasets.folds.patients import divided_persons
from kdkit_ecg.utils.record_files import table_name
from kdkit_ecg.utils.tables import PATIENT_COLUMNS, parse_table, patient_name

FORMAT = "2"  # of the first line of the file; format 1 had the keys `version` and `k` for `format` and `folds`
_NUMBER = re.compile(r"([0-9]{1,4})(?:\.0)?")  # of folds, which are numbered without gaps; pandas may write 1.0
_COLUMNS = ("record", "database", "patient", "fold")


class FoldEntry(NamedTuple):
    """The database and patient of a record ("" if unknown), and its fold, counted from 0."""

    database: str
    patient: str
    fold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """The fold of every record.

    entries: record -> FoldEntry. k: number of folds. provenance: how they were made, such as seed and grouping.
    Raises DataError for a fold that is not between 0 and k - 1, and for a fold without a record.
    """

    entries: Mapping[str, FoldEntry]
    k: int
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        used = {entry.fold for entry in self.entries.values()}
        if used != set(range(self.k)):
            raise DataError(
                f"expected {self.k} folds numbered 0 to {self.k - 1}, each with a record, got the folds {sorted(used)}"
            )

    @property
    def fingerprint(self) -> str:
        """A digest of the fold of each record."""
        lines = "\n".join(f"{record} {entry.fold}" for record, entry in sorted(self.entries.items()))
        return hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()

    @property
    def divided_patients(self) -> dict[str, list[int]]:
        """The patients with records in several folds -> these folds."""
        return divided_persons((entry.patient, entry.fold) for entry in self.entries.values())

    @property
    def summary(self) -> str:
        """The number of records in each fold, in total and for each database."""
        rows = {"all": [0] * self.k}
        for entry in sorted(self.entries.values()):
            for name in ("all", entry.database or "no database"):
                rows.setdefault(name, [0] * self.k)[entry.fold] += 1
        return "\n".join(
            f"{printable(name)}: {' + '.join(map(str, counts))} = {sum(counts)}" for name, counts in rows.items()
        )

    def folds_of_groups(self, group_of_record: Mapping[str, str]) -> dict[str, int]:
        """Return group -> fold for the groups whose fold is fixed by one of their records or their patient.

        group_of_record: record -> group. Raises DataError if a group is in two folds.
        """
        fold_of_patient = {entry.patient: entry.fold for entry in self.entries.values() if entry.patient}
        folds: dict[str, int] = {}
        for record, group in group_of_record.items():
            # A group is named after its patient, so a new record of a patient with a fold goes there too.
            fold = self.entries[record].fold if record in self.entries else fold_of_patient.get(group)
            if fold is not None and folds.setdefault(group, fold) != fold:
                raise DataError(f"the existing folds have {group} in folds {folds[group]} and {fold}; make new folds")
        return folds

    def write(self, path: str | Path) -> None:
        """Write a CSV of record, database, patient and fold, below a line with format, provenance and fingerprint."""
        metadata = {"format": FORMAT, "folds": self.k, **self.provenance, "fingerprint": self.fingerprint}
        text = io.StringIO()
        text.write(f"# kdkit folds {' '.join(f'{key}={value}' for key, value in metadata.items())}\n")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_COLUMNS)
        table.writerows((record, *entry) for record, entry in sorted(self.entries.items()))
        # The name of a folder on the disk, which may be the database, need not be UTF-8.
        write(user_path(path), text.getvalue().encode(errors="backslashreplace"))

    @classmethod
    def read(cls, path: str | Path, *, columns: Mapping[str, str] | None = None) -> Self:
        """Read a folds file, or any CSV with the columns record and fold, and patient and database if it has them.

        columns: names of columns that differ from these, such as {"record": "exam_id"}; those it lacks are ignored.
        Raises DataError, which names the file, if it cannot be read, has another format, contains two folds of one
        record, or was changed since it was written.
        """
        try:
            return cls._parse(user_path(path).read_text(encoding="utf-8-sig"), columns or {})
        except (DataError, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a folds file: {error}") from error

    @classmethod
    def _parse(cls, text: str, names: Mapping[str, str]) -> Self:
        first_line, _, remainder = text.partition("\n")
        metadata: dict[str, str] = {}
        if first_line.startswith(("#", '"#')):  # a spreadsheet may quote the line, and append commas to it
            metadata = dict(re.findall(r"(\w+)=([^\s,\"]+)", first_line))
            text = remainder
            file_format = metadata.get("format", metadata.get("version", FORMAT))
            if "version" in metadata or file_format != FORMAT:
                raise DataError(
                    f"expected format {FORMAT}, got format {file_format}; make the folds again with `kdkit ecg "
                    "folds`, or delete the first line to read the file as a plain table"
                )
        table = parse_table(text)
        chosen = {role: name for role, name in names.items() if name in table.columns}
        columns = [*map(str.lower, table.columns), *chosen]
        if not {"record", "fold"} <= set(columns):
            raise DataError(f"it needs the columns record and fold, but has {', '.join(columns) or 'no columns'}")
        patient_column = next((name for name in PATIENT_COLUMNS if name in columns), "")
        entries: dict[str, FoldEntry] = {}
        for _, cells in table.rows:
            row = {column.lower(): cell for column, cell in cells.items()}
            row |= {role: cells[name] for role, name in chosen.items()}
            record = table_name(row["record"])
            if not record:
                continue
            number = _NUMBER.fullmatch(row["fold"])
            if not number:
                raise DataError(f"the fold of record {record} must be a number from 0, got {row['fold'][:60]!r}")
            entry = FoldEntry(row.get("database", ""), patient_name(row.get(patient_column, "")), int(number[1]))
            if entries.setdefault(record, entry) != entry:
                raise DataError(f"record {record} occurs twice, in folds {entries[record].fold} and {entry.fold}")
        k = metadata.get("folds", str(1 + max((entry.fold for entry in entries.values()), default=0)))
        provenance = {key: value for key, value in metadata.items() if key not in ("format", "folds", "fingerprint")}
        count = _NUMBER.fullmatch(k)
        folds = cls(entries=entries, k=int(count[1]) if count else 0, provenance=provenance)
        if metadata.get("fingerprint", folds.fingerprint) != folds.fingerprint:
            raise DataError(
                f"its records have the fingerprint {folds.fingerprint}, but its first line has "
                f"{metadata['fingerprint']}, so it was changed since it was written; if the change is right, delete "
                "the first line"
            )
        return folds
