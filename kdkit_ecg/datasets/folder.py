"""Find the records in a folder tree, and keep those that can be learned from, each once."""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.headers import Header, read_header
from kdkit_ecg.labels import Classes
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records import Record, missing_files, read_record

Rows = Mapping[str, Mapping[str, str]]


class Reason(StrEnum):
    """Why a record is left out, in the order in which it is looked for."""

    HEADER = "unreadable header"
    NO_SIGNAL = "no signal file"
    LEADS = f"fewer than {len(LEADS)} leads"
    UNITS = "normalised units, not mV (normalised_units=True takes them)"
    CODES = "no scored code"
    NAME = "the name of another record"
    RATE = "a rate too low for the band-pass"
    SIGNAL = "unreadable signal"
    TWIN = "the signal of another record"


class LeftOut:
    """What was left out of a folder, by reason."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[Reason, list[str]] = {}

    def add(self, reason: Reason, path: Path) -> None:
        """Leave the record with this .hea file out."""
        self.records.setdefault(reason, []).append(path.relative_to(self.folder).with_suffix("").as_posix())

    def copy(self) -> "LeftOut":
        """Return the same, to be added to."""
        copied = LeftOut(self.folder)
        copied.records = {reason: list(names) for reason, names in self.records.items()}
        return copied

    def summary(self, kept: int) -> str:
        """Return how many records were read, and one line per reason with a count and the first few names."""
        found = kept + sum(map(len, self.records.values()))
        lines = [f"{kept} of {found} records read"]
        for reason in Reason:
            names = self.records.get(reason, [])
            if names:
                more = ", ..." if len(names) > 3 else ""
                lines.append(f"  {len(names)} left out, {reason}: {', '.join(names[:3])}{more}")
        return "\n".join(lines)


def read_rows(folder: Path) -> Rows:
    """Return the rows of records.csv at the root of the folder, by record; none where there is no such file.

    Its columns record and patient must be there; database, the folder a record belongs in, may be. A record is written
    with or without its .hea, .mat or .dat. Raises DataError, which names the file and the line, for what cannot be read
    and for two rows that say different things of one record.
    """
    path = folder / "records.csv"
    if not path.is_file():
        return {}
    rows: dict[str, Mapping[str, str]] = {}
    lines: dict[str, int] = {}
    table = csv.reader(io.StringIO(_decoded(path), newline=""))
    try:
        columns = [cell.strip() for cell in next(table, [])]
        if not {"record", "patient"} <= set(columns):
            raise DataError(f"{path} needs the columns record and patient, but has {', '.join(columns)}")
        for cells in table:
            row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
            name = re.sub(r"\.(hea|mat|dat)$", "", row.get("record", ""))
            known = {column: row.get(column, "") for column in ("patient", "database")}
            if not name:
                continue
            if rows.setdefault(name, known) != known:
                raise DataError(
                    f"{path}, line {table.line_num}: record {name} is {_told(known)}, but {_told(rows[name])} in line "
                    f"{lines[name]}; leave the one row that is right"
                )
            lines.setdefault(name, table.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}, is no line of a table: {error}") from error
    return rows


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


def find(folder: Path, classes: Classes, rows: Rows, left: LeftOut, *, normalised_units: bool) -> list[Header]:
    """Return the headers of the records to read, by name, and note in `left` what is left out; reads no signal.

    Of records with one name, the one kept stands in the folder of its database as `rows` has it, or else nearest to
    the root, or else first by path: so a release's own record goes before a copy of it in some other folder.
    """
    paths = sorted(folder.rglob("*.hea"))
    if not paths:
        bare = sum(1 for _ in folder.rglob("*.mat"))
        raise DataError(
            f"no .hea file in {folder} or below ({bare} .mat files); expected the folders of a Challenge release as "
            "they come, with a header A0001.hea and a signal A0001.mat for each record"
        )
    named: dict[str, list[Header]] = {}
    for path in paths:
        try:
            header = read_header(path)
        except DataError:
            left.add(Reason.HEADER, path)
            continue
        reason = _unfit(header, classes, normalised_units=normalised_units)
        if reason:
            left.add(reason, path)
        else:
            named.setdefault(header.name, []).append(header)
    kept = []
    for name in sorted(named):
        first, *others = sorted(named[name], key=lambda each: _distance(each.path, folder, rows.get(name, {})))
        kept.append(first)
        for other in others:
            left.add(Reason.NAME, other.path)
    return kept


def read_signals(
    headers: Sequence[Header], shaped: Callable[[Record], NDArray[np.float32]], left: LeftOut
) -> dict[Header, NDArray[np.float32]]:
    """Return the shaped signals of the records, and note in `left` which cannot be read.

    Of records with the same twelve leads, sample by sample, the first by name is kept: A0101 and Q0048 of the
    Challenge are one signal with two lists of codes.
    """
    signals: dict[Header, NDArray[np.float32]] = {}
    seen: set[bytes] = set()
    for header in headers:
        try:
            record = read_record(header)
        except DataError:
            left.add(Reason.SIGNAL, header.path)
            continue
        content = hashlib.blake2b(record.signal[: len(LEADS)].tobytes(), digest_size=16).digest()
        if content in seen:
            left.add(Reason.TWIN, header.path)
            continue
        seen.add(content)
        try:
            signals[header] = shaped(record)
        except DataError:
            left.add(Reason.RATE, header.path)
    return signals


def _unfit(header: Header, classes: Classes, *, normalised_units: bool) -> Reason | None:
    if missing_files(header):
        return Reason.NO_SIGNAL
    if not set(LEADS) <= set(header.leads):
        return Reason.LEADS
    if header.normalised and not normalised_units:
        return Reason.UNITS
    return None if classes.row(header.codes).any() else Reason.CODES


def _distance(path: Path, folder: Path, row: Mapping[str, str]) -> tuple[bool, int, Path]:
    parents = path.relative_to(folder).parent.parts
    return row.get("database") not in parents, len(parents), path
