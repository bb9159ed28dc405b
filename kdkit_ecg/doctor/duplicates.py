"""Compare records with each other to find names and signals that occur more than once."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePath
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.signal_sketch import MIN_CORRELATION, correlation, near_pairs
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.wfdb_record import Steps, invalid_values, read_steps
from kdkit_ecg.utils.tables import PatientTable, read_patient_table


class ComparedSignal(NamedTuple):
    """A signal with leads sorted by name: in converter steps, in mV, and the value of an invalid sample, (leads, 1)."""

    steps: Steps
    in_mv: NDArray[np.float32]
    invalid_values: Steps

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the signal of the record with this header."""
        header = read_header(path)
        order = np.argsort(header.leads)
        gains, baselines = (np.array(values)[order, None] for values in (header.gains, header.baselines))  # (leads, 1)
        steps = read_steps(header)[order]  # (leads, time)
        with np.errstate(over="ignore", invalid="ignore"):  # a tiny gain, which the doctor reports
            in_mv = ((steps - baselines) / gains).astype(np.float32)
        return cls(steps, in_mv, invalid_values(header)[order])

    def compare(self, candidate: Self) -> Reason | None:
        """Return in which way another signal duplicates this one, sample by sample; None if it does not."""
        if np.array_equal(self.in_mv, candidate.in_mv):
            return Reason.DUPLICATE
        smallest = correlation(self.steps, candidate.steps, (self.invalid_values, candidate.invalid_values))
        return Reason.SCALED_DUPLICATE if smallest >= MIN_CORRELATION else None


def mark_duplicate_names(folder: Path, records: Sequence[RecordReport]) -> None:
    """Mark all records with one name but the one that the loaders use: in its database's folder, or else top-most."""
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
    """Mark all records with one signal but the first by name among those that are not bad."""
    ordered = sorted(records, key=lambda record: (record.bad, record.name, *_depth_and_path(record)))
    rank = {record.path: position for position, record in enumerate(ordered)}
    # Pairs are sorted by their first record, so a cache of two signals reads that record once for all of its pairs.
    read = lru_cache(maxsize=2)(ComparedSignal.read)
    marked: set[str] = set()
    for first, second in sorted(near_pairs(ordered), key=lambda pair: [rank[record.path] for record in pair]):
        reason = read(first.header).compare(read(second.header)) if second.path not in marked else None
        if reason:
            second.add(reason, first.path)
            marked.add(second.path)


def _depth_and_path(record: RecordReport) -> tuple[int, str]:
    return record.path.count("/"), record.path
