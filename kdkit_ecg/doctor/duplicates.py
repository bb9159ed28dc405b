"""Compare records with each other to find names and signals that occur more than once."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePath

import numpy as np

from kdkit import DataError
from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.signal_sketch import MIN_CORRELATION, Floats, correlation, near_pairs
from kdkit_ecg.doctor.waveform import read_signal
from kdkit_ecg.records.open_file import open_file
from kdkit_ecg.utils.tables import PatientTable, read_patient_table


def mark_duplicate_names(folder: Path, records: Sequence[RecordReport]) -> None:
    """Of the records with one name, mark all but the one that loaders use: in its database's folder, or top-most."""
    table: PatientTable = {}
    with suppress(DataError):  # the loaders refuse the table
        table = read_patient_table([folder])
    by_name: dict[str, list[RecordReport]] = defaultdict(list)
    for record in records:
        if record.name:
            by_name[record.name].append(record)
    for name, group in by_name.items():
        used, *duplicates = sorted(
            group,
            key=lambda record: (
                record.bad,
                table.get(name, {}).get("database") not in PurePath(record.path).parent.parts,
                *_depth_and_path(record),
            ),
        )
        for record in duplicates:
            record.add(Reason.NAME, used.path)


def mark_duplicate_signals(records: Sequence[RecordReport]) -> None:
    """Of the records with one signal, mark all but the first by name that is not bad."""
    ordered = sorted(
        records, key=lambda record: (record.bad, record.name or PurePath(record.path).name, *_depth_and_path(record))
    )
    rank = {record.path: position for position, record in enumerate(ordered)}

    # Pairs are sorted by their first record, so with a cache of two signals, that record is read once for all its
    # pairs.
    @lru_cache(maxsize=2)
    def read(path: Path) -> Floats:
        (source,) = open_file(path)
        return read_signal(source)[0][np.argsort(source.leads)]

    marked: set[str] = set()
    for first, second in sorted(near_pairs(ordered), key=lambda pair: [rank[record.path] for record in pair]):
        if second.path in marked:
            continue
        signals = read(first.header), read(second.header)
        if np.array_equal(signals[0].astype(np.float32), signals[1].astype(np.float32), equal_nan=True):
            second.add(Reason.DUPLICATE, first.path)
        elif correlation(*signals) >= MIN_CORRELATION:
            second.add(Reason.SCALED_DUPLICATE, first.path)
        else:
            continue
        marked.add(second.path)


def _depth_and_path(record: RecordReport) -> tuple[int, str]:
    return record.path.count("/"), record.path
