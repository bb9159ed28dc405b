"""Hold records against each other: names and signals that are there more than once."""

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.samples import INVALID, Samples, read_samples, stored
from kdkit_ecg.doctor.signal_sketch import SAME, near_pairs, similarity
from kdkit_ecg.records.header import read_header


class Read(NamedTuple):
    """A signal, its leads by name: in steps of the converter, in mV, and the value that marks an invalid sample."""

    samples: Samples
    in_mv: NDArray[np.float32]
    mark: int | None


def mark_names(folder: Path, records: Sequence[RecordReport]) -> None:
    """Mark all records of one name but the one that the loaders keep: that of its database, nearest to the root."""
    databases = _databases(folder)
    named: dict[str, list[RecordReport]] = defaultdict(list)
    for each in records:
        if each.name:
            named[each.name].append(each)
    for name, group in named.items():
        kept, *others = sorted(
            group,
            key=lambda each: (each.bad, databases.get(name) not in PurePath(each.path).parent.parts, *_place(each)),
        )
        for other in others:
            other.add(Reason.NAME, kept.path)


def mark_twins(folder: Path, records: Sequence[RecordReport]) -> None:
    """Mark all records of one signal but the first by name among those that are not bad."""
    ordered = sorted(records, key=lambda each: (each.bad, each.name, *_place(each)))
    rank = {each.path: place for place, each in enumerate(ordered)}
    read = lru_cache(maxsize=2)(partial(_read, folder))  # pairs come ordered by the record that is kept
    marked: set[str] = set()
    for kept, other in sorted(near_pairs(ordered), key=lambda pair: [rank[each.path] for each in pair]):
        reason = _compared(read(kept.path), read(other.path)) if other.path not in marked else None
        if reason:
            other.add(reason, kept.path)
            marked.add(other.path)


def _compared(one: Read, other: Read) -> Reason | None:
    """Return how two signals are the same, compared sample by sample."""
    if np.array_equal(one.in_mv, other.in_mv):
        return Reason.TWIN
    alike = similarity(one.samples, other.samples, (one.mark, other.mark))
    return Reason.SCALED_TWIN if alike >= SAME else None


def _read(folder: Path, path: str) -> Read:
    header = read_header(folder / f"{path}.hea")
    order = np.argsort(header.leads)
    gains, baselines = (np.array(each)[order, None] for each in (header.gains, header.baselines))
    samples = read_samples(header)[order]
    in_mv = ((samples - baselines) / gains).astype(np.float32)
    return Read(samples, in_mv, INVALID.get(stored(header)[0].format))


def _place(record: RecordReport) -> tuple[int, str]:
    return record.path.count("/"), record.path


def _databases(folder: Path) -> dict[str, str]:
    """Return the database of each record that records.csv gives one, as far as it can be read."""
    path = folder / "records.csv"
    if not path.is_file():
        return {}
    databases = {}
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as table, suppress(csv.Error):
        for row in csv.DictReader(table):
            databases[re.sub(r"\.(hea|mat|dat)$", "", (row.get("record") or "").strip())] = row.get("database") or ""
    return databases
