"""Find the records in folder trees, and select one of each name that can be used."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.datasets.exclusions import ExcludedRecords, ExclusionReason
from kdkit_ecg.datasets.patient_table import PatientTable
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.header import Header, read_header
from kdkit_ecg.records.record import missing_files
from kdkit_ecg.utils.record_files import find_record_files

# Folders that are not named after a database: the Challenges put a thousand records each into g1, g2 and so on.
_NOT_A_DATABASE = re.compile(r"g\d+|training")


class LabelEncoder(Protocol):
    """The classes of a data set, and the labels of a record with some codes."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the label columns."""
        ...

    def row(self, codes: Iterable[str]) -> NDArray[np.float32]:
        """Return (classes,) float32 of 0 and 1. Codes without a class are ignored."""
        ...


def find_records(
    encoder: LabelEncoder, table: PatientTable, excluded: ExcludedRecords, *, normalised_units: bool
) -> list[Header]:
    """Return the headers of the usable records in `excluded.folders`, sorted by name. Reads no signal.

    Records that cannot be used are added to `excluded`. Of records with one name, the first in this order is used: the
    one in the folder of its database in `table`, in the folder that was given first, nearest to the root, first by
    path. Thus the record of a release is preferred to a copy of it.
    """
    by_name: dict[str, list[Header]] = {}
    rank: dict[Path, tuple[int, int]] = {}  # (position of the root folder, depth below it)
    seen: set[Path] = set()  # headers, and signals that a header names or that have none, by their real paths
    for position, folder in enumerate(excluded.folders):
        files = find_record_files(folder)
        excluded.add_not_listed(files.not_listed)
        if not files.headers:
            matrices = sum(path.suffix.lower() == ".mat" for path in files.signals)
            raise DataError(
                f"no .hea file in {folder} or its subfolders ({matrices} .mat files); expected the folders of a "
                "Challenge release, with a header A0001.hea and a signal A0001.mat for each record"
            )
        # One of the folders may be inside another, or contain a link to it. A folder has one real path.
        real_folder = {
            parent: parent.resolve() for parent in {path.parent for path in (*files.headers, *files.signals)}
        }
        for path in files.headers:
            if real_folder[path.parent] / path.name in seen:
                continue
            seen.add(real_folder[path.parent] / path.name)
            rank[path] = (position, len(path.relative_to(folder).parts))
            try:
                header = read_header(path)
            except DataError:
                excluded.add(ExclusionReason.HEADER, path)
                continue
            seen.update(real_folder[path.parent] / name for name in header.files)
            reason = exclusion_reason(header, encoder, normalised_units=normalised_units)
            if reason:
                excluded.add(reason, path)
            else:
                by_name.setdefault(header.name, []).append(header)
        for path in files.without_header():
            if real_folder[path.parent] / path.name not in seen:
                seen.add(real_folder[path.parent] / path.name)
                excluded.add(ExclusionReason.NO_HEADER, path)
    selected = []
    for name in sorted(by_name):  # sorted, so that rows do not depend on the order of the file system
        database = table.get(name, {}).get("database")
        # Paths are unique, so the comparison of two tuples never reaches the headers.
        ranked = sorted(
            (database not in header.path.parts[:-1], rank[header.path], header.path, header) for header in by_name[name]
        )
        selected.append(ranked[0][-1])
        for *_, header in ranked[1:]:
            excluded.add(ExclusionReason.NAME, header.path)
    return selected


def exclusion_reason(header: Header, encoder: LabelEncoder, *, normalised_units: bool) -> ExclusionReason | None:
    """Return why a record cannot be used according to its header; None if it can."""
    if missing_files(header):
        return ExclusionReason.NO_SIGNAL
    if not set(LEADS) <= set(header.leads):
        return ExclusionReason.LEADS
    if header.normalised and not normalised_units:
        return ExclusionReason.UNITS
    return None if encoder.row(header.codes).any() else ExclusionReason.CODES


def database_of(header: Header, table: PatientTable) -> str:
    """Return the database of a record in `table`, otherwise the name of the nearest folder named after a database."""
    parents: Sequence[str] = header.path.absolute().parts[:-1]
    folders = [part for part in parents if not _NOT_A_DATABASE.fullmatch(part)]
    return table.get(header.name, {}).get("database") or (folders[-1] if folders else "")
