"""Read the signals of records, and exclude records with the signal of another record."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.datasets.exclusions import ExcludedRecords, ExclusionReason
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.filters import flat_leads
from kdkit_ecg.records.preparation import Preparation, content_hash
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.store import FAULTS, SignalFile, SignalStore, StoredSignals
from kdkit_ecg.utils.messages import first_names

Signals = Sequence[NDArray[np.float32]]

_EXAMINED = 100  # records whose amplitude is compared with the plausible ones
_AMPLITUDES = (0.05, 20.0)  # mV between the lowest and the highest sample of the median lead, after a filter

# By the fault of a `PreparedSignal`.
_REASONS = {
    "signal": ExclusionReason.SIGNAL,
    "rate": ExclusionReason.RATE,
    "checksum": ExclusionReason.CHECKSUM,
    "flat": ExclusionReason.FLAT,
}


def read_signals(
    sources: Sequence[RecordSource], preparation: Preparation, excluded: ExcludedRecords, store: SignalStore | None
) -> tuple[list[RecordSource], Signals, list[bytes]]:
    """Return the records that can be prepared, their signals, and a hash of the samples in each record's files.

    The others are added to `excluded`.

    store: the store of the prepared signals; None prepares them here and holds them in memory.
    Of records with the same samples in all leads, the first one by name is used. A0101 and Q0048 of the
    Challenge are such a pair, with two different lists of codes.
    """
    contents: dict[bytes, None] = {}  # of the records that are used, in their order

    def accept(source: RecordSource, content: bytes, fault: str) -> bool:
        if not fault and content not in contents:
            contents[content] = None
            return True
        reason = _REASONS[fault] if fault else ExclusionReason.DUPLICATE
        # The other reasons explain themselves.
        unexplained = fault in ("signal", "rate") and reason not in excluded.causes
        excluded.add(reason, source.path, cause=cause_of(source) if unexplained else None)
        return False

    def cause_of(source: RecordSource) -> Exception | None:
        # A store has only the kind of a fault, so the first record of each kind is read again.
        try:
            preparation.transform(source.read())
        except Exception as error:  # any kind, for a damaged file
            return error
        return None

    if store is not None:
        rows = store.prepare(sources).rows
        results = zip(sources, rows["content"].tolist(), rows["fault"].tolist(), strict=True)
        accepted = [
            row for row, (source, content, fault) in enumerate(results) if accept(source, content, FAULTS[fault])
        ]
        used = [sources[row] for row in accepted]
        file = SignalFile(store.folder.path, rows[accepted], [source.name for source in used])
        return used, StoredSignals(file), list(contents)
    used = []
    signals: list[NDArray[np.float32]] = []
    for source in sources:
        prepared = preparation.prepare(source)
        if accept(source, prepared.content, prepared.fault or "") and prepared.signal is not None:
            used.append(source)
            signals.append(prepared.signal)
    return used, signals, list(contents)


def duplicate_signals(sources: Sequence[RecordSource]) -> list[list[str]]:
    """Return lists of two or more names of records with the same signal.

    Reads only WFDB records whose headers agree in rate, length, first samples and checksums, even if these are unknown.
    Of records in other formats, the second one is excluded when its signal is read. Records without any signal, as of
    disconnected electrodes, and with numbers that are too large are excluded too, and may be of several persons.
    """
    candidates: dict[object, list[RecordSource]] = defaultdict(list)
    for source in [source for source in sources if source.checks]:
        checks = sorted(zip(source.leads, source.checks, strict=True))  # in any order of the leads
        candidates[source.rate, source.samples, tuple(checks)].append(source)
    names_by_content: dict[bytes, list[str]] = defaultdict(list)
    for source in [source for group in candidates.values() if len(group) > 1 for source in group]:
        try:
            signal = source.read().signal[: len(LEADS)]
        except (DataError, MemoryError):
            continue  # the record is excluded later, when its signal is read
        if np.isfinite(signal).all() and not flat_leads(signal).all():
            names_by_content[content_hash(signal)].append(source.name)
    return [names for names in names_by_content.values() if len(names) > 1]


def implausible_amplitudes(sources: Sequence[RecordSource], signals: Signals, stop: int) -> Iterator[str]:
    """Yield a line about records whose numbers cannot be mV, among some of all. stop: the samples to read of each."""
    rows = [row for row in range(0, len(sources), max(1, len(sources) // _EXAMINED)) if not sources[row].normalised]
    read = (
        signals.window if isinstance(signals, StoredSignals) else lambda row, start, stop: signals[row][:, start:stop]
    )
    spans = {sources[row].name: float(np.median(np.ptp(read(row, 0, stop), axis=1))) for row in rows}
    lowest, highest = _AMPLITUDES
    wrong = [f"{name} ({span:.3g} mV)" for name, span in spans.items() if not lowest <= span <= highest]
    if wrong:
        yield (
            f"  {len(wrong)} of {len(rows)} records that were examined span less than {lowest} mV or more than "
            f"{highest:g} mV in the median lead; check their unit and gain: {first_names(wrong)}"
        )
