"""Examine the signal of one record: file sizes, checksums, and every lead."""

from collections.abc import Sequence

import numpy as np

from kdkit import DataError
from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.signal_sketch import Floats, sketch_of
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.records.wfdb_record import Header, invalid_values, mismatched_leads, read_steps

GAINS = (20.0, 50_000.0)  # steps per mV: converters have a resolution between 50 uV and 20 nV
FULL_SCALE = 0.9  # share of the range of its format that a lead spans if wfdb chose the gain to use all of it
AMPLITUDES = (0.1, 10.0)  # mV between the lowest and the highest sample; the median of the leads is compared
PLATEAU = 0.02  # s at the extreme value of a lead: longer than the peak of any wave
LONG_PLATEAU = 0.1  # s; one of these means clipping, or two of PLATEAU
MIN_EXCURSION = 1.0  # mV from the median of the lead, so that a quiet baseline does not count as a plateau

_MATLAB_HEADER = 24  # bytes before the samples of a version 4 .mat file with a variable "val"


def examine_signal(record: RecordReport, source: RecordSource, leads: Sequence[str]) -> None:
    """Add the findings about a signal, and its sketch, to the record. The files of the signal must exist.

    leads: that the record needs.
    """
    mismatch, parts = "", []
    if isinstance(source, Header):  # files of other formats describe themselves
        parts = [part for part, _ in source.segments if part] or [source]
    for part in parts:
        mismatch = mismatch or _compare_sizes(record, part)
    try:
        signal, wrong = read_signal(source)
    except DataError as error:
        record.add(Reason.SHAPE if mismatch else Reason.SIGNAL, mismatch or str(error))
        return
    if mismatch:
        record.add(Reason.SHAPE, mismatch)
    if wrong:
        record.add(Reason.CHECKSUM, ", ".join(wrong))
    invalid = np.isnan(signal)
    if invalid.any():
        counts = zip(source.leads, invalid.sum(axis=1).tolist(), strict=True)
        record.add(Reason.INVALID, ", ".join([f"{lead} {count}" for lead, count in counts if count]))
    record.sketch = sketch_of(signal, source.leads)
    _examine_leads(record, source, signal, leads)


def read_signal(source: RecordSource) -> tuple[Floats, list[str]]:
    """Return the signal in mV, (leads, time), NaN if invalid, and the leads whose samples do not match the header.

    Raises DataError or OSError if it cannot be read.
    """
    wrong: list[str] = []
    if isinstance(source, Header):
        steps = read_steps(source)
        signal, wrong = source.to_mv(steps), mismatched_leads(source, steps)
    else:
        signal = source.read_leads()
    if (np.abs(signal) > np.finfo(np.float32).max).any():  # the loaders read float32
        raise DataError(f"the signal of {source.path} has samples that are infinite, or too large for a number")
    return signal, wrong


def _compare_sizes(record: RecordReport, header: Header) -> str:
    """Return how the sizes of the signal files differ from the header in leads or samples, "" if they match."""
    for file in header.files:
        channels = [channel for channel in header.channels if channel.file == file]
        path = header.path.with_name(file)
        size, offset = path.stat().st_size, channels[0].offset
        frames = header.samples // header.channels[header.positions[0]].frame
        if path.suffix.lower() == ".mat" and offset == _MATLAB_HEADER:
            rows, columns = np.fromfile(path, dtype="<i4", count=3)[1:].tolist() if size >= _MATLAB_HEADER else (0, 0)
            if rows != len(channels):
                return f"{file} holds {rows} leads of {columns} samples, not {len(channels)} of {frames}"
        if any(channel.format != "16" for channel in channels):  # other formats have no fixed size per sample
            continue
        samples = (size - offset) / (2 * sum(channel.frame for channel in channels))
        if samples < frames:
            return f"{file} has {max(0, int(samples))} samples per lead, not {frames}"
        if samples > frames:
            record.add(Reason.LONGER, f"{samples:g} per lead, not {frames}")
    return ""


def _examine_leads(record: RecordReport, source: RecordSource, signal: Floats, leads: Sequence[str]) -> None:
    """Find leads that are flat, clipped, or implausibly large or small, and gains that no converter has."""
    invalid = np.isnan(signal)
    highest = np.where(invalid, -np.inf, signal).max(axis=1)
    lowest = np.where(invalid, np.inf, signal).min(axis=1)
    flat = highest <= lowest  # (leads,); also true for a lead without a valid sample
    spans = np.where(flat, 0, highest - lowest)  # in mV
    if isinstance(source, Header) and not source.normalised:  # a gain per standard deviation has no plausible range
        ranges = 2 * np.abs(invalid_values(source)[:, 0])  # (leads,): the invalid value is the lowest one of the format
        implausible = {
            gain
            for gain, span, steps in zip(source.gains, spans.tolist(), ranges.tolist(), strict=True)
            # If wfdb scaled a lead to all steps of the format, or if the lead is flat, its gain means nothing.
            if not GAINS[0] <= abs(gain) <= GAINS[1] and 0 < span * abs(gain) < FULL_SCALE * steps
        }
        if implausible:
            record.add(Reason.GAIN, f"{', '.join(f'{gain:g}' for gain in sorted(implausible))} steps per mV")
    has_all = set(leads) <= set(source.leads)  # otherwise, some may be computed from others
    if flat[[source.leads.index(lead) for lead in leads] if has_all else slice(None)].all():
        record.add(Reason.EMPTY)
        return
    if flat.any():
        record.add(Reason.FLAT, ", ".join([lead for lead, is_flat in zip(source.leads, flat, strict=True) if is_flat]))
    if source.normalised:  # amplitudes are not in mV
        return
    clipped = [
        name
        for lead, name in enumerate(source.leads)
        if not flat[lead] and _is_clipped(signal[lead][~invalid[lead]], source.rate)
    ]
    if clipped:
        record.add(Reason.CLIPPED, ", ".join(clipped))
    amplitude = float(np.median(spans[~flat]))
    if not AMPLITUDES[0] <= amplitude <= AMPLITUDES[1]:
        record.add(Reason.AMPLITUDE, f"{amplitude:.3g} mV between the lowest and the highest sample")


def _is_clipped(lead: Floats, rate: float) -> bool:
    """Return whether the lead stays at its highest or lowest value for longer than any wave does."""
    median = np.median(lead)
    for extreme in (lead.max(), lead.min()):
        if abs(extreme - median) < MIN_EXCURSION:
            continue
        # Starts and ends of the plateaus alternate among the changes of this 0/1 sequence.
        edges = np.flatnonzero(np.diff(np.concatenate(([0], (lead == extreme).astype(np.int8), [0]))))
        seconds = (edges[1::2] - edges[::2]) / rate
        if (seconds >= LONG_PLATEAU).any() or (seconds >= PLATEAU).sum() > 1:
            return True
    return False
