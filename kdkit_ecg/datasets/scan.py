"""Find the records in folder trees, and keep those that can be learned from, each once."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.datasets.exclusions import ExcludedRecords, Reason
from kdkit_ecg.datasets.patient_table import Rows
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.header import Header, read_header
from kdkit_ecg.records.record import missing_files

# Folders between a database and its records: the Challenges pack a thousand records in each of g1, g2 and so on.
_PACKED = re.compile(r"g\d+|training")


class Columns(Protocol):
    """The classes of a data set, and which of them a record's codes mean."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in the order of the label columns."""
        ...

    def row(self, codes: Iterable[str]) -> NDArray[np.float32]:
        """Return (classes,) float32 of 0 and 1; codes that are of no class add nothing."""
        ...


def find(classes: Columns, rows: Rows, left: ExcludedRecords, *, normalised_units: bool) -> list[Header]:
    """Return the headers of the records to read, by name, and note in `left` what is left out; reads no signal.

    Of records with one name, the one kept stands in the folder of its database as `rows` has it, or else in the folder
    given first, or else nearest to the root, or else first by path: so a release's own record goes before a copy.
    """
    named: dict[str, list[Header]] = {}
    order: dict[Path, tuple[int, int]] = {}
    for place, folder in enumerate(left.folders):
        for path in _headers(folder, left):
            if path in order:  # one folder may lie within another
                continue
            order[path] = (place, len(path.relative_to(folder).parts))
            try:
                header = read_header(path)
            except DataError:
                left.add(Reason.HEADER, path)
                continue
            reason = unfit(header, classes, normalised_units=normalised_units)
            if reason:
                left.add(reason, path)
            else:
                named.setdefault(header.name, []).append(header)
    kept = []
    for name in sorted(named):
        home = rows.get(name, {}).get("database")
        ranked = sorted(((home not in each.path.parts[:-1], order[each.path], each.path), each) for each in named[name])
        kept.append(ranked[0][1])
        for _, other in ranked[1:]:
            left.add(Reason.NAME, other.path)
    return kept


def unfit(header: Header, classes: Columns, *, normalised_units: bool) -> Reason | None:
    """Return why a record cannot be learned from, as far as its header says; None where it can."""
    if missing_files(header):
        return Reason.NO_SIGNAL
    if not set(LEADS) <= set(header.leads):
        return Reason.LEADS
    if header.normalised and not normalised_units:
        return Reason.UNITS
    return None if classes.row(header.codes).any() else Reason.CODES


def database_of(header: Header, rows: Rows) -> str:
    """Return the database of a record: as `rows` has it, or else the folder that it came in."""
    named: Mapping[str, Any] = rows.get(header.name, {})
    parents: Sequence[str] = header.path.absolute().parts[:-1]
    folders = [part for part in parents if not _PACKED.fullmatch(part)]
    return named.get("database") or (folders[-1] if folders else "")


def _headers(folder: Path, left: ExcludedRecords) -> list[Path]:
    """Return the .hea files, and note in `left` the .mat files that have none, as of the CPSC's own release."""
    paths = sorted(folder.rglob("*.hea"))
    described = set(paths)
    bare = [path for path in sorted(folder.rglob("*.mat")) if path.with_suffix(".hea") not in described]
    if not paths:
        raise DataError(
            f"no .hea file in {folder} or below ({len(bare)} .mat files); expected the folders of a Challenge release "
            "as they come, with a header A0001.hea and a signal A0001.mat for each record"
        )
    for path in bare:
        left.add(Reason.BARE, path)
    return paths
