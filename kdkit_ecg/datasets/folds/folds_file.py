"""Folds in a file that a run names, so that two people learn from and report on the same records."""

import csv
import hashlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from kdkit import DataError

VERSION = "1"
_COLUMNS = ("record", "database", "patient", "fold")


class Place(NamedTuple):
    """Where a record comes from, who it is of ("" where nobody knows), and the fold it is in, from 0."""

    database: str
    patient: str
    fold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """The fold of every record, and how these were made.

    places: record -> Place. k: how many folds. made: what is told of their making, such as seed and grouping.
    Raises DataError for a fold that is not between 0 and k - 1, and for a fold without a record.
    """

    places: Mapping[str, Place]
    k: int
    made: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        used = {place.fold for place in self.places.values()}
        if used != set(range(self.k)):
            raise DataError(f"{self.k} folds are numbered 0 to {self.k - 1}, each with a record, not {sorted(used)}")

    @property
    def fingerprint(self) -> str:
        """A digest of which record is in which fold."""
        told = "\n".join(f"{record} {place.fold}" for record, place in sorted(self.places.items()))
        return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()

    @property
    def parted(self) -> dict[str, list[int]]:
        """The patients who are in several folds, each with these folds."""
        folds: dict[str, set[int]] = {}
        for place in self.places.values():
            if place.patient:
                folds.setdefault(place.patient, set()).add(place.fold)
        return {patient: sorted(in_folds) for patient, in_folds in folds.items() if len(in_folds) > 1}

    @property
    def summary(self) -> str:
        """How many records each fold has, in all and of each database."""
        rows = {"all": [0] * self.k}
        for place in sorted(self.places.values()):
            for name in ("all", place.database or "no database"):
                rows.setdefault(name, [0] * self.k)[place.fold] += 1
        return "\n".join(f"{name}: {' + '.join(map(str, counts))} = {sum(counts)}" for name, counts in rows.items())

    def write(self, path: str | Path) -> None:
        """Write a CSV of record, database, patient and fold, after a line that says how they were made."""
        told = {"version": VERSION, "k": self.k, **self.made, "fingerprint": self.fingerprint}
        text = io.StringIO()
        text.write(f"# kdkit folds {' '.join(f'{key}={value}' for key, value in told.items())}\n")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_COLUMNS)
        table.writerows((record, *place) for record, place in sorted(self.places.items()))
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(text.getvalue(), encoding="utf-8")
        unfinished.replace(path)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read such a file, or any CSV with the columns record and fold.

        Raises DataError, which names the file, where it cannot be read, says two things of a record, or was changed
        since it was written.
        """
        try:
            return cls._parsed(Path(path).read_text(encoding="utf-8-sig"))
        except (DataError, OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} holds no folds: {error}") from error

    @classmethod
    def _parsed(cls, text: str) -> Self:
        told, table = _parts(text)
        places: dict[str, Place] = {}
        for row in table:
            record = row["record"]
            if not row["fold"].isdecimal():
                raise DataError(f"the fold of record {record} is a number from 0, not {row['fold']!r}")
            place = Place(row.get("database", ""), row.get("patient", ""), int(row["fold"]))
            if places.setdefault(record, place) != place:
                raise DataError(f"record {record} is in it twice, in folds {places[record].fold} and {place.fold}")
        if told.get("version", VERSION) != VERSION:
            raise DataError(f"it is of version {told['version']}, and this kdkit reads version {VERSION}")
        known = {key: value for key, value in told.items() if key not in ("version", "k", "fingerprint")}
        k = told.get("k", str(1 + max((place.fold for place in places.values()), default=0)))
        folds = cls(places=places, k=int(k) if k.isdecimal() else 0, made=known)
        if told.get("fingerprint", folds.fingerprint) != folds.fingerprint:
            raise DataError(
                f"its records make the fingerprint {folds.fingerprint}, and its first line says {told['fingerprint']}: "
                "it was changed since; where that is right, delete the first line"
            )
        return folds


def _parts(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return what the first line tells and the rows of the table below it."""
    first, _, rest = text.partition("\n")
    told: dict[str, str] = {}
    if first.startswith(("#", '"#')):  # a spreadsheet may quote it, and fill its line with commas
        told = dict(re.findall(r"(\w+)=([^\s,\"]+)", first))
        text = rest
    table = csv.DictReader(io.StringIO(text, newline=""))
    if not {"record", "fold"} <= set(table.fieldnames or ()):
        raise DataError(f"it needs the columns record and fold, but has {', '.join(table.fieldnames or ('none',))}")
    return told, [{column: (value or "").strip() for column, value in row.items() if column} for row in table]
