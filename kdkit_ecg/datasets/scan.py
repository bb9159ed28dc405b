"""Find the records in folder trees, and select one usable record per name."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kdkit import DataError
from kdkit_ecg.datasets.exclusions import ExcludedRecords, ExclusionReason
from kdkit_ecg.labels import LabelEncoder
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.preparation import SHORTEST
from kdkit_ecg.records.signal_lines import DEFAULT_GAIN
from kdkit_ecg.records.source import RecordSource, missing_files
from kdkit_ecg.records.wfdb_record import Header
from kdkit_ecg.utils.messages import first_names
from kdkit_ecg.utils.record_files import find_record_files
from kdkit_ecg.utils.tables import PatientTable

# Folders that are not named after a database: the Challenges put a thousand records each into g1, g2 and so on.
_NOT_A_DATABASE = re.compile(r"g\d+|training")


class Selection(NamedTuple):
    """The records that can be used according to their headers, and the excluded ones."""

    sources: list[RecordSource]
    excluded: ExcludedRecords


def find_records(
    encoder: LabelEncoder, table: PatientTable, excluded: ExcludedRecords, *, normalised_units: bool
) -> list[RecordSource]:
    """Return the headers of the usable records in `excluded.folders`, sorted by name. Reads no signal.

    table: the patient and database of records by name; the database of any other is the name of its folder.
    Records that cannot be used are added to `excluded`. Of records with one name, the first in this order is used: in
    the folder of its database in `table`, in the folder passed first, nearest to the root, first by path. The record of
    a release is thus preferred to a copy.
    """
    by_name: dict[str, list[Header]] = {}
    rank: dict[Path, tuple[int, int]] = {}  # (position of the root folder, depth below it)
    seen: set[Path] = set()
    for position, folder in enumerate(excluded.folders):
        for header in _read_headers(folder, excluded, seen):
            rank[header.path] = (position, len(header.path.relative_to(folder).parts))
            if is_usable(header, excluded, encoder=encoder, normalised_units=normalised_units):
                by_name.setdefault(header.name, []).append(header)
    selected: list[RecordSource] = []
    for name in sorted(by_name):  # sorted, so that rows do not depend on the order of the file system
        row = table.get(name, {"patient": "", "database": ""})
        # Paths are unique, so the comparison of two tuples never reaches the headers.
        ranked = sorted(
            (row["database"] not in header.path.parts[:-1], rank[header.path], header.path, header)
            for header in by_name[name]
        )
        chosen = ranked[0][-1]
        database = row["database"] or _database_folder(chosen.path)
        selected.append(replace(chosen, patient=row["patient"], database=database))
        for *_, header in ranked[1:]:
            excluded.add(ExclusionReason.NAME, header.path)
    return selected


def is_usable(
    source: RecordSource,
    excluded: ExcludedRecords,
    *,
    encoder: LabelEncoder | None = None,
    leads: Sequence[str] = LEADS,
    normalised_units: bool = False,
) -> bool:
    """Return whether a record can be used according to its header. If not, it is added to `excluded`.

    encoder: excludes records without any of its classes. leads: that the record needs, or others that give them.
    """
    reason, detail = None, ""
    absent = source.absent_leads(leads)
    if missing_files(source):
        reason = ExclusionReason.NO_SIGNAL
    elif absent:
        reason = ExclusionReason.LEADS
        unknown = [lead for lead in source.leads if lead not in LEADS and lead not in leads]
        detail = f"no {', '.join(absent)}" + (f"; unknown: {', '.join(unknown)}" if unknown else "")
    elif source.normalised and not normalised_units:
        reason = ExclusionReason.UNITS
    elif encoder and not encoder.row(source.codes).any():
        reason = ExclusionReason.CODES
    if reason:
        excluded.add(reason, source.path, detail)
    return reason is None


def assumptions(sources: Sequence[RecordSource], leads: Sequence[str], *, seconds: float) -> list[str]:
    """Return lines for the summary about values that were assumed or computed because the records lack them.

    seconds: of a sample.
    """
    lines = {
        f"without a gain, for which {DEFAULT_GAIN:g} steps per mV are assumed": [
            source.name for source in sources if source.default_gains
        ],
        "without a number of samples, which is that of the signal file": [
            source.name for source in sources if source.counted
        ],
        "whose signal file lacks its suffix in the header": [source.name for source in sources if source.renamed_files],
        f"shorter than {SHORTEST:.0%} of a sample, of which the rest is zeros": [
            source.name for source in sources if source.samples / source.rate < SHORTEST * seconds
        ],
    }
    by_derived: dict[tuple[str, ...], list[str]] = {}  # the absent leads -> records
    for source in sources:
        derived = tuple(lead for lead in leads if lead not in source.leads)
        if derived:
            by_derived.setdefault(derived, []).append(source.name)
    lines |= {
        f"without {', '.join(derived)}, computed from two other limb leads": names
        for derived, names in by_derived.items()
    }
    return [f"  {len(names)} {text}: {first_names(names)}" for text, names in lines.items() if names]


def _database_folder(path: Path) -> str:
    """Return the name of the nearest folder above a file that is named after a database, "" if there is none."""
    folders = [part for part in path.absolute().parts[:-1] if not _NOT_A_DATABASE.fullmatch(part)]
    return folders[-1] if folders else ""


def _read_headers(folder: Path, excluded: ExcludedRecords, seen: set[Path]) -> list[Header]:
    """Return the headers in a folder, and exclude those that cannot be read, and signals without a header.

    seen: real paths of files to skip, because another of the folders contains them; new ones are added. One of the
    folders may be inside another, or contain a link to it.
    """
    files = find_record_files(folder)
    excluded.add_files(files)
    if not files.headers:
        matrices = sum(path.suffix.lower() == ".mat" for path in files.signals)
        raise DataError(
            f"no .hea file in {folder} or its subfolders ({matrices} .mat files); expected the folders of a "
            "Challenge release, with a header A0001.hea and a signal A0001.mat for each record"
        )
    parents = {parent: parent.resolve() for parent in {path.parent for path in (*files.headers, *files.signals)}}
    headers = []
    named: set[Path] = set()
    for path in [path for path in files.headers if parents[path.parent] / path.name not in seen]:
        try:
            header = read_header(path)
        except DataError as error:
            excluded.add(ExclusionReason.HEADER, path, cause=error)
        else:
            headers.append(header)
            named.update(parents[path.parent] / name for name in header.files)
    for path in files.without_header():
        real_path = parents[path.parent] / path.name
        if real_path not in named and real_path not in seen:
            excluded.add(ExclusionReason.NO_HEADER, path)
    seen.update(parents[path.parent] / path.name for path in (*files.headers, *files.signals))
    # The header of a segment, which the header of its record names, is not a record.
    return [header for header in headers if parents[header.path.parent] / header.path.name not in named]
