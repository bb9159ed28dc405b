"""Read the signals of records, each signal once."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.datasets.exclusions import ExcludedRecords, Reason
from kdkit_ecg.records.header import Header
from kdkit_ecg.records.preparation import Preparation, content_of
from kdkit_ecg.records.record import read_record
from kdkit_ecg.store import FAULTS, Mapped, Store, StoredSignals

Signals = Sequence[NDArray[np.float32]]


def read_signals(
    headers: Sequence[Header], preparation: Preparation, left: ExcludedRecords, store: Store | None = None
) -> tuple[list[Header], Signals]:
    """Return the records that can be prepared, and their signals, and note in `left` which cannot.

    store: where they are kept; None prepares them here and holds them in memory.
    Of records with the same twelve leads, sample by sample, the first by name is kept: A0101 and Q0048 of the
    Challenge are one signal with two lists of codes.
    """
    seen: set[bytes] = set()

    def fits(header: Header, content: bytes, fault: str) -> bool:
        unread, twin = fault == "signal", content in seen
        if not unread:
            seen.add(content)
        reason = Reason.SIGNAL if unread else Reason.TWIN if twin else Reason.RATE if fault else None
        if reason is not None:
            left.add(reason, header.path)
        return reason is None

    if store is not None:
        rows = store.filled(headers).rows
        told = zip(headers, rows["content"].tolist(), rows["fault"].tolist(), strict=True)
        taken = [place for place, (header, content, fault) in enumerate(told) if fits(header, content, FAULTS[fault])]
        return [headers[place] for place in taken], StoredSignals(Mapped(store.place.path, rows[taken]))
    kept: list[Header] = []
    signals: list[NDArray[np.float32]] = []
    for header in headers:
        outcome = preparation.prepare(header)
        if fits(header, outcome.content, outcome.fault or "") and outcome.signal is not None:
            kept.append(header)
            signals.append(outcome.signal)
    return kept, signals


def twins(headers: Sequence[Header]) -> list[list[str]]:
    """Return the names of records that have one signal, in lists of two or more.

    Only records whose headers give the same length, first samples and checksums are read and compared.
    """
    alike: dict[object, list[Header]] = defaultdict(list)
    for header in headers:
        checks = sorted(zip(header.leads, header.checks, strict=True))
        alike[header.rate, header.samples, tuple(checks)].append(header)
    found: dict[bytes, list[str]] = defaultdict(list)
    for header in [header for several in alike.values() if len(several) > 1 for header in several]:
        try:
            found[content_of(read_record(header))].append(header.name)
        except DataError:
            continue  # it will be left out when its signal is read
    return [names for names in found.values() if len(names) > 1]
