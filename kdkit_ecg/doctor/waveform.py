"""Examine the signal of one record: its files, its checksums, and every lead."""

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.samples import INVALID, Samples, Stored, read_samples, stored
from kdkit_ecg.doctor.signal_sketch import sketch_of
from kdkit_ecg.records.header import Header

AMPLITUDES = (0.1, 10.0)  # mV from the lowest to the highest sample, of the lead in the middle
PLATEAU = 0.02  # s at a lead's own highest or lowest value that no wave takes
LONG_PLATEAU = 0.1  # s, of which one is enough; of shorter ones there are two or more
FAR = 1.0  # mV from the lead's median, so that a quiet baseline is no plateau


def examine_signal(record: RecordReport, header: Header) -> None:
    """Add to the record what is found of its signal, whose files are there, and its sketch."""
    places = stored(header)
    mismatch = _shape(record, header, places)
    try:
        samples = read_samples(header)
    except DataError as error:
        record.add(Reason.SHAPE if mismatch else Reason.SIGNAL, mismatch or str(error))
        return
    if mismatch:
        record.add(Reason.SHAPE, mismatch)
    wrong = [
        lead
        for lead, place, total in zip(header.leads, places, samples.sum(axis=1).tolist(), strict=True)
        if (total - place.checksum) % (1 << 16)
    ]
    if wrong:
        record.add(Reason.CHECKSUM, ", ".join(wrong))
    marks = np.array([[INVALID.get(place.format, 1 << 40)] for place in places])
    invalid = samples == marks
    if invalid.any():
        record.add(Reason.INVALID, ", ".join([f"{lead} {count}" for lead, count in _counted(header, invalid)]))
    record.sketch = sketch_of(samples, header.leads, invalid)
    _shapes(record, header, samples, invalid)


def _shape(record: RecordReport, header: Header, places: list[Stored]) -> str:
    """Return how the files differ in leads or samples from the header, as far as their sizes tell."""
    for file in header.files:
        here = [place for place in places if place.file == file]
        path = header.path.with_name(file)
        if path.suffix == ".mat" and here[0].offset == 24:
            rows, columns = (
                np.fromfile(path, dtype="<i4", count=3)[1:].tolist() if path.stat().st_size >= 24 else (0, 0)
            )
            if rows != len(here):
                return f"{file} holds {rows} leads of {columns} samples, not {len(here)} of {header.samples}"
        if any(place.format != "16" for place in here):
            continue
        there = (path.stat().st_size - here[0].offset) / (2 * len(here))
        if there < header.samples:
            return f"{file} has {max(0, int(there))} samples a lead, not {header.samples}"
        if there > header.samples:
            record.add(Reason.LONGER, f"{there:g} a lead, not {header.samples}")
    return ""


def _shapes(record: RecordReport, header: Header, samples: Samples, invalid: NDArray[np.bool_]) -> None:
    """Look for leads that are flat, clipped, or absurdly large or small."""
    highest = np.where(invalid, np.iinfo(np.int64).min, samples).max(axis=1)
    lowest = np.where(invalid, np.iinfo(np.int64).max, samples).min(axis=1)
    flat = highest <= lowest
    if flat.all():
        record.add(Reason.EMPTY)
        return
    if flat.any():
        record.add(Reason.FLAT, ", ".join([lead for lead, dead in zip(header.leads, flat, strict=True) if dead]))
    if header.normalised:
        return
    gains = np.abs(header.gains)
    clipped = [
        lead
        for place, lead in enumerate(header.leads)
        if not flat[place] and _is_clipped(samples[place][~invalid[place]], gains[place], header.rate)
    ]
    if clipped:
        record.add(Reason.CLIPPED, ", ".join(clipped))
    middle = float(np.median(((highest - lowest) / gains)[~flat]))
    if not AMPLITUDES[0] <= middle <= AMPLITUDES[1]:
        record.add(Reason.AMPLITUDE, f"{middle:.3g} mV from the lowest to the highest sample")


def _is_clipped(lead: NDArray[np.int64], gain: float, rate: float) -> bool:
    """Return whether the lead stays at its highest or lowest value as no wave does."""
    median = np.median(lead)
    for extreme in (lead.max(), lead.min()):
        if abs(extreme - median) < FAR * gain:
            continue
        edges = np.flatnonzero(np.diff(np.concatenate(([0], (lead == extreme).astype(np.int8), [0]))))
        lengths = (edges[1::2] - edges[::2]) / rate
        if (lengths >= LONG_PLATEAU).any() or (lengths >= PLATEAU).sum() > 1:
            return True
    return False


def _counted(header: Header, invalid: NDArray[np.bool_]) -> list[tuple[str, int]]:
    return [(lead, count) for lead, count in zip(header.leads, invalid.sum(axis=1).tolist(), strict=True) if count]
