"""A WFDB record: its header, and its samples in converter steps, which are compared with the checksums in the header.

wfdb reads all formats except plain 16-bit integers, for which it takes ten times as long plus half a second to import.
It does not compare checksums, and allocates what a header requests before it looks at a file.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from shutil import copyfile
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.source import UNITS, RecordSource, missing_files
from kdkit_ecg.utils.record_files import read_header_bytes, require_regular_file

Steps = NDArray[np.int64]

# Bits of a sample, in the formats of WFDB whose samples all have the same size.
BITS: Mapping[str, int] = MappingProxyType(
    {"8": 8, "80": 8, "212": 12, "16": 16, "61": 16, "160": 16, "24": 24, "32": 32}
)

# The value of an invalid sample in each WFDB format. Format 8 has none.
_INVALID = {"80": -(1 << 7), "508": -(1 << 7), "310": -(1 << 9), "311": -(1 << 9), "212": -(1 << 11)}
_INVALID |= dict.fromkeys(("16", "61", "160", "516"), -(1 << 15))
_INVALID |= {"24": -(1 << 23), "524": -(1 << 23), "32": -(1 << 31)}
# Bits of a sample for the size of a file; formats 310 and 311 have three samples in four bytes.
_STORED_BITS = {**BITS, "310": 10, "311": 10}
_COMPRESSED = ("508", "516", "524")  # FLAC
# Samples of a compressed file, as a multiple of its bytes: FLAC stores constant leads in almost no space, so a small
# file could fill the memory. There is no limit below this number of samples, which take little memory.
_MAX_COMPRESSION, _UNLIMITED_SAMPLES = 64, 1 << 20

_LARGEST_STEP = 1 << 39
_NEVER = 1 << 40  # larger than any sample, for a format without an invalid value

_NOT_OF_SIGNAL = ("path", "segments", "name", "age", "sex", "codes", "patient", "database")  # fields of a header


class ChecksumError(DataError):
    """The samples of a record do not match its header."""


class Channel(NamedTuple):
    """How a channel is stored.

    file: the name of its file on the disk. format: the number of a WFDB format. frame: samples per frame. skew: in
    frames. offset: bytes before the first sample. first: the first sample of format 8, which stores differences;
    otherwise 0.
    """

    file: str
    format: str
    frame: int
    skew: int
    offset: int
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header(RecordSource):
    """The header of a WFDB record, with the fields of the signal for each lead, in the order of the file.

    codes: SNOMED CT codes. gains_per_unit in converter steps, baselines in steps.
    channels: everything that the signal files contain. positions: the channel of each lead.
    segments: the parts of a record in several segments, None for a gap, each with its number of samples per lead;
    gains, units and channels are then those of the segment with the finest steps.
    """

    gains_per_unit: tuple[float, ...]
    baselines: tuple[int, ...]
    channels: tuple[Channel, ...]
    positions: tuple[int, ...]
    segments: tuple[tuple["Header | None", int], ...] = ()

    @property
    def gains(self) -> tuple[float, ...]:
        """The gain of each lead in converter steps per mV."""
        return tuple(gain / UNITS[unit] for gain, unit in zip(self.gains_per_unit, self.units, strict=True))

    @property
    def signal_fields(self) -> tuple[tuple[str, object], ...]:
        """Name and value of every field that describes the signal, here and in the segments."""
        names = [field.name for field in fields(Header) if field.name not in _NOT_OF_SIGNAL]
        segments = tuple((header and header.signal_fields, samples) for header, samples in self.segments)
        return (*((name, getattr(self, name)) for name in names), ("segments", segments))

    def select(self, leads: Sequence[str]) -> "Header":
        """Return the description of these leads alone, in this order."""
        rows = [self.leads.index(lead) for lead in leads]
        by_lead = ("leads", "gains_per_unit", "baselines", "units", "checks", "positions")
        selected: dict[str, Any] = {name: tuple(getattr(self, name)[row] for row in rows) for name in by_lead}
        return replace(self, default_gains=tuple(lead for lead in self.default_gains if lead in leads), **selected)

    def read_leads(self) -> NDArray[np.float64]:
        """Read the samples of the leads; see `RecordSource`.

        Raises ChecksumError, a DataError, if the samples do not match first samples and checksums in the header.
        """
        missing = missing_files(self)
        if missing:
            raise DataError(f"{self.path} names the signal file {missing[0]}, which is not in the same folder")
        steps = read_steps(self)
        mismatched = mismatched_leads(self, steps)
        if mismatched:
            raise ChecksumError(
                f"the samples of {self.path} do not match the first samples and checksums in it (leads "
                f"{', '.join(mismatched)}); the signal file was converted, damaged or replaced, so fetch it again"
            )
        return self.to_mv(steps)

    def to_mv(self, steps: Steps) -> NDArray[np.float64]:
        """Return converter steps, (leads, time), in mV, or in standard deviations if normalised; NaN if invalid."""
        gains, baselines = (np.array(values)[:, None] for values in (self.gains_per_unit, self.baselines))
        units = np.array([UNITS[unit] for unit in self.units])[:, None]  # normalised units have a factor of 1
        # A tiny gain silently gives samples that are not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            # In place: the leads of a day take gigabytes.
            signal = steps.astype(np.float64)
            signal -= baselines
            signal /= gains
            signal[steps == invalid_values(self)] = np.nan
            signal *= units
        return signal

    def description(self) -> bytes:
        """Return the bytes of the header."""
        return read_header_bytes(self.path)

    def most_samples(self) -> int:
        """Return an upper bound of the samples per lead, because a header may state any number.

        It is the number that the signal files would hold at one bit per sample.
        """
        bits = 8 * sum(self.path.with_name(name).stat().st_size for name in self.files)
        return min(self.samples, bits // len(self.leads))


def invalid_values(header: Header) -> Steps:
    """Return (leads, 1): the value of an invalid sample of each lead."""
    return np.array([[_INVALID.get(header.channels[position].format, _NEVER)] for position in header.positions])


def read_steps(header: Header) -> Steps:
    """Return (leads, time) in converter steps, leads in the order of the header.

    A gap between segments consists of invalid samples. Raises DataError if the samples cannot be read.
    """
    if not header.segments:
        return _read_signal(header)
    # A segment may occur thousands of times, and is read once.
    distinct = {id(part): part for part, _ in header.segments if part}
    read = {key: _scaled(_read_signal(part), part, header) for key, part in distinct.items()}
    gap = invalid_values(header)
    parts = [read[id(part)] if part else np.repeat(gap, samples, axis=1) for part, samples in header.segments]
    return np.concatenate(parts, axis=1)


def mismatched_leads(header: Header, steps: Steps) -> list[str]:
    """Return the leads whose samples do not match the header.

    The checksum of a lead decides. If all checksums of a record are 0, which means that they are unknown, the first
    sample decides, unless it is 0 too. Samples of another record, or of a file that was converted or damaged, have
    different checksums.
    """
    wrong: dict[str, None] = {}  # without repetition, in order
    start = 0
    for part, samples in header.segments or ((header, header.samples),):
        columns = steps[:, start : start + samples]
        start += samples
        if part is None:
            continue
        if _scale(part) != _scale(header):  # the checksums are over the samples of the file
            columns = _read_signal(part)
        has_checksums = any(checksum for _, checksum in part.checks)
        totals, first_samples = columns.sum(axis=1).tolist(), columns[:, 0].tolist()
        for lead, (first, checksum), total, sample in zip(part.leads, part.checks, totals, first_samples, strict=True):
            # Some files have extra leads without a checksum.
            if checksum or (has_checksums and lead in LEADS):
                # WFDB: the sum of all samples as a 16-bit number, which some files write without a sign.
                differs = (total - checksum) % (1 << 16) != 0
            else:
                differs = first not in (0, sample)
            if differs:
                wrong[lead] = None
    return list(wrong)


def _scale(header: Header) -> tuple[object, ...]:
    """Return everything that gives the steps of a signal their meaning."""
    return header.gains, header.baselines, invalid_values(header).tolist()


def _scaled(steps: Steps, part: Header, header: Header) -> Steps:
    """Return the steps of a segment, (leads, time), in the steps of the whole record, rounded if the two differ."""
    if _scale(part) == _scale(header):
        return steps
    gains, baselines = (np.array(values)[:, None] for values in (part.gains, part.baselines))  # (leads, 1)
    new_gains, new_baselines = (np.array(values)[:, None] for values in (header.gains, header.baselines))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scaled = (steps - baselines) / gains * new_gains + new_baselines
    # A tiny gain gives numbers beyond those of int64.
    scaled = np.rint(np.clip(np.nan_to_num(scaled), -_LARGEST_STEP, _LARGEST_STEP)).astype(np.int64)
    return np.where(steps == invalid_values(part), invalid_values(header), scaled)


def _read_signal(header: Header) -> Steps:
    frame = header.channels[header.positions[0]].frame
    frames = header.samples // frame
    _require_samples(header, frames)
    if all((channel.format, channel.frame, channel.skew) == ("16", 1, 0) for channel in header.channels):
        return _read_16_bits(header, frames)
    import wfdb  # takes half a second with pandas

    single = all(channel.frame == 1 for channel in header.channels)
    names = {file: f"s{number}.dat" for number, file in enumerate(header.files)}
    # A header with what wfdb needs to find the samples. It does not need rate, gains and lead names.
    lines = [f"record {len(header.channels)} 1 {frames}"]
    lines += [
        f"{names[channel.file]} {channel.format}x{channel.frame}:{channel.skew}+{channel.offset} 1 0 0 {channel.first} "
        f"0 0 channel {number}"
        for number, channel in enumerate(header.channels)
    ]
    try:
        with tempfile.TemporaryDirectory(prefix="kdkit-") as folder:
            for file, name in names.items():
                source, target = header.path.with_name(file).absolute(), Path(folder, name)
                try:
                    target.symlink_to(source)
                except OSError:  # e.g. Windows, which allows links only to administrators
                    copyfile(source, target)
            Path(folder, "record.hea").write_text("\n".join([*lines, ""]), encoding="ascii")
            # Without smoothing, wfdb does not average the samples of a frame, but fails for format 61.
            record = wfdb.rdrecord(str(Path(folder, "record")), physical=False, smooth_frames=single)
    except Exception as error:  # wfdb raises any kind of exception for a damaged file
        raise DataError(f"the signal of {header.path} cannot be read: {error or type(error).__name__}") from error
    stored = record.d_signal.T if single else record.e_d_signal  # (channels, time), or a list of (time,)
    leads = [stored[position] for position in header.positions]
    if {len(lead) for lead in leads} != {header.samples}:
        raise DataError(f"the signal of {header.path} has {len(leads[0])} samples per lead, expected {header.samples}")
    return np.stack(leads).astype(np.int64)


def _read_16_bits(header: Header, frames: int) -> Steps:
    """Return the samples of a record in 16-bit format, as almost all are."""
    columns: dict[int, NDArray[np.int16]] = {}  # position of a channel -> its samples
    try:
        for file in header.files:
            positions = [number for number, channel in enumerate(header.channels) if channel.file == file]
            offset, count = header.channels[positions[0]].offset, frames * len(positions)
            stored = np.fromfile(header.path.with_name(file), "<i2", count, offset=offset).reshape(frames, -1)
            columns |= zip(positions, stored.T, strict=True)
    except (OSError, ValueError) as error:
        raise DataError(f"the signal of {header.path} cannot be read: {error}") from error
    return np.stack([columns[position] for position in header.positions]).astype(np.int64)


def _require_samples(header: Header, frames: int) -> None:
    """Raise DataError if a signal file is too small for this number of frames.

    wfdb allocates memory for everything that a header describes before it reads a file, so a header of a few bytes
    could request any amount.
    """
    for file in header.files:
        channels = [channel for channel in header.channels if channel.file == file]
        lead_format, offset = channels[0].format, channels[0].offset  # wfdb uses those of the first channel for all
        samples = frames * sum(channel.frame for channel in channels)
        try:
            state = header.path.with_name(file).stat()
            require_regular_file(state)
        except (DataError, OSError) as error:
            raise DataError(f"the signal of {header.path} cannot be read: {error}") from error
        size = state.st_size
        if lead_format in _COMPRESSED:
            largest = max(_UNLIMITED_SAMPLES, _MAX_COMPRESSION * size)
        elif lead_format in _STORED_BITS:
            # In formats whose samples share bytes, the last samples may take a little less: wfdb decides.
            largest = 8 * max(0, size - offset) // _STORED_BITS[lead_format]
        else:
            raise DataError(f"the signal of {header.path} has format {lead_format}, which is not one of WFDB")
        if samples > largest:
            raise DataError(
                f"the signal of {header.path} cannot be read: {file} has {size:,} bytes, which hold at most "
                f"{largest:,} samples, expected {samples:,}"
            )
        # A skewed channel starts later. Samples beyond the end of the file are invalid, so this one would have no valid
        # sample.
        skew = max(channel.skew for channel in channels)
        if skew >= frames:
            raise DataError(
                f"the signal of {header.path} cannot be read: a channel starts at frame {skew:,} of {frames:,}"
            )
