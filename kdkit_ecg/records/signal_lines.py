"""Parse the lines of a WFDB header about the signal: how each channel is stored, and which of them are leads.

wfdb is not used, for the reasons in header.py.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kdkit import DataError
from kdkit_ecg.leads import LEADS, missing_leads, standard_name, standard_names
from kdkit_ecg.records.source import UNITS
from kdkit_ecg.records.wfdb_record import BITS, Channel, Header
from kdkit_ecg.utils.messages import clipped, shown
from kdkit_ecg.utils.record_files import present_file

# Units of pressure, breath, oxygen and temperature, recorded next to an ECG in intensive care. These channels are not
# read.
_OTHER_UNITS = frozenset(
    ("mmhg", "kpa", "cmh2o", "pm", "bpm", "%", "pct", "ohm", "ohms", "l", "l/min", "ml", "degc", "c"),
)
DEFAULT_GAIN = 200.0  # steps per mV: the default of the WFDB header specification if there is no gain

MAX_LINE = 4_096  # characters of a line that is not a comment; those of the Challenges have about 60
MAX_GAIN = 1e12  # steps per mV: more would leave nothing of a signal in float32

# File, format and layout of a channel; this is enough to skip it.
_CHANNEL = re.compile(
    r"(?P<folder>\S*/)?(?P<file>~?[-\w]+(?:\.\w+)?)\s+(?P<format>[0-9]{1,3})(?:x(?P<frame>[0-9]{1,18}))?"
    r"(?::(?P<skew>[0-9]{1,18}))?(?:\+(?P<offset>[0-9]{1,18}))?(?=\s|$)"
)
_GAIN = (
    r"(?P<gain>-?[0-9]{1,32}(?:\.[0-9]{0,32})?(?:e[-+]?[0-9]{1,4})?)(?:\((?P<baseline>-?[0-9]{1,15})\))?"
    r"(?:/(?P<unit>\S+))?"
)
# The remainder of the line of a lead: gain, bits, zero, first sample, checksum, block size and name. Two parts that
# match the same characters never follow each other, so that a line that does not match takes linear time.
_LEAD = re.compile(
    r"\s+" + _GAIN + r"\s+[0-9]+\s+(?P<zero>-?[0-9]{1,15})\s+(?P<first>-?[0-9]{1,15})\s+(?P<checksum>-?[0-9]{1,15})"
    r"\s+[0-9]+\s+(?P<name>\S.*)"
)
# All of these except the name are optional in WFDB, from the last to the first. Only one of the twelve leads may
# follow, so that a malformed field is not mistaken for a name.
_SHORT_LEAD = re.compile(
    r"(?:\s+" + _GAIN + r"(?:\s+[0-9]+(?:\s+(?P<zero>-?[0-9]{1,15})(?:\s+(?P<first>-?[0-9]{1,15})"
    r"(?:\s+(?P<checksum>-?[0-9]{1,15}))?)?)?)?)?\s+(?P<name>[A-Za-z].*)"
)


class _Lead(NamedTuple):
    """A lead: its position among the channels, and the fields of its line."""

    position: int
    name: str
    gain: float
    has_gain: bool
    baseline: int
    unit: str
    check: tuple[int, int]


def parse_signal_lines(path: Path, lines: Sequence[str], rate: float, frames: int) -> Header:
    """Return the description of the signal. Raises DataError.

    path: of the header. rate and frames: from its first line, which counts frames, not samples; frames is 0 if the line
    does not contain it. Channels in units of other quantities, such as a blood pressure, are skipped. Channels that
    cannot be read or have a different number of samples per frame are also skipped, if the twelve leads are complete
    without them.
    """
    # Memoised: most records have one file, and looking at the disk takes longer than parsing. Equal channels are one
    # object, because the headers of a whole data set are in memory.
    file_on_disk = cache(lambda name: present_file(path.with_name(name)).name)
    shared: dict[Channel, Channel] = {}
    channels, leads, errors, names = [], [], [], []
    for position, line in enumerate(lines):
        layout = _CHANNEL.match(line)
        if not layout:
            raise _line_error(line)
        names.append(layout["file"])
        # "sub/A1.mat" is A1.mat in the folder of the header. These names point to another folder.
        if layout["folder"] and (layout["folder"].startswith("/") or ".." in layout["folder"].split("/")):
            raise DataError(f"expected the name of a file in the folder of the header, got the line {shown(line)}")
        details = _LEAD.fullmatch(line, layout.end())
        short = None if details else _SHORT_LEAD.fullmatch(line, layout.end())
        details = short if short and standard_name(short["name"]) in LEADS else details
        channel = _parse_channel(layout, details, file_on_disk)
        channels.append(shared.setdefault(channel, channel))
        if details and (details["unit"] or "").lower() in _OTHER_UNITS and standard_name(details["name"]) not in LEADS:
            continue
        try:
            leads.append(_parse_lead(line, details, position))
        except DataError as error:
            errors.append(error)
    names_of_leads = standard_names(lead.name for lead in leads)
    leads = [lead._replace(name=name) for lead, name in zip(leads, names_of_leads, strict=True)]
    # A pulse wave (PLETH) has normalised units next to leads in mV. Alone, such a channel may be a lead.
    if any(lead.unit != "nu" for lead in leads):
        leads = [lead for lead in leads if lead.unit != "nu" or lead.name in LEADS]
    leads, frame = _select_leads(leads, channels, errors)
    counted = not frames
    frames = frames or _count_frames(path, channels, leads[0].position)
    return Header(
        path=path,
        rate=rate * frame,
        samples=frames * frame,
        counted=counted,
        renamed_files=tuple(name for name in dict.fromkeys(names) if file_on_disk(name).lower() != name.lower()),
        leads=tuple(lead.name for lead in leads),
        # The leads of most records are in one file, which is listed once.
        files=tuple(dict.fromkeys(channel.file for channel in channels)),
        gains_per_unit=tuple(lead.gain for lead in leads),
        baselines=tuple(lead.baseline for lead in leads),
        units=tuple(lead.unit for lead in leads),
        # With a skew, samples beyond the end of the file are missing, and the checksum is over other samples.
        checks=tuple((0, 0) if channels[lead.position].skew else lead.check for lead in leads),
        channels=tuple(channels),
        positions=tuple(lead.position for lead in leads),
        default_gains=tuple(lead.name for lead in leads if not lead.has_gain),
    )


def _select_leads(
    leads: list[_Lead], channels: Sequence[Channel], errors: Sequence[DataError]
) -> tuple[list[_Lead], int]:
    """Return the leads that are read, and their number of samples per frame. errors: of the lines of other channels."""
    complete = not missing_leads([lead.name for lead in leads])
    if errors and not complete:
        raise errors[0]
    if not leads:
        raise DataError("it has no channel in mV, uV, nV, V or NU")
    counts = Counter(lead.name.lower() for lead in leads)
    frame_sizes = Counter(channels[lead.position].frame for lead in leads if lead.name in LEADS or not complete)
    if len(frame_sizes) > 1:
        sizes = ", ".join(f"{lead.name} {channels[lead.position].frame}" for lead in leads)
        raise DataError(f"leads with different numbers of samples per frame are not supported, got {clipped(sizes)}")
    frame = next(iter(frame_sizes))
    if complete:  # further channels are not needed, so those that differ or are ambiguous are skipped
        leads = [
            lead
            for lead in leads
            if lead.name in LEADS or (channels[lead.position].frame == frame and counts[lead.name.lower()] == 1)
        ]
    return leads, frame


def _parse_channel(layout: re.Match[str], details: re.Match[str] | None, file_on_disk: Callable[[str], str]) -> Channel:
    frame = int(layout["frame"] or 1)
    if not frame:
        raise DataError(f"the samples per frame must be above 0, got the line {shown(layout.string)}")
    return Channel(
        # The name may lack its suffix, or have a different case from the file on the disk. Without such a file it stays
        # as written.
        file=file_on_disk(layout["file"]),
        format=layout["format"],
        frame=frame,
        skew=int(layout["skew"] or 0),
        offset=int(layout["offset"] or 0),
        first=int(details["first"] or 0) if details and layout["format"] == "8" else 0,
    )


def _parse_lead(line: str, details: re.Match[str] | None, position: int) -> _Lead:
    if not details:
        raise _line_error(line)
    gain, unit = float(details["gain"] or 0), (details["unit"] or "").lower()
    # WFDB writes 0 for a signal that is not calibrated. With a unit, this is a contradiction; without one, it means
    # that there is no gain.
    if not gain and details["unit"]:
        raise DataError(f"a gain of 0 leaves the amplitude unknown; write steps per mV in {shown(line)}")
    if unit not in UNITS:
        raise DataError(f"{shown(details['unit'])} is not a supported unit; expected mV, uV, nV, V or NU")
    if abs(gain) > MAX_GAIN * UNITS[unit]:
        raise DataError(f"a gain of {gain:g} leaves no signal; write steps per mV in {shown(line)}")
    return _Lead(
        position=position,
        name=details["name"],
        gain=gain or DEFAULT_GAIN,
        has_gain=bool(gain),
        # WFDB: a missing baseline is the ADC zero of the lead.
        baseline=int(details["baseline"] or details["zero"] or 0),
        unit=sys.intern(unit),
        check=(int(details["first"] or 0), int(details["checksum"] or 0)),
    )


def _line_error(line: str) -> DataError:
    return DataError(
        f"expected 'FILE FORMAT GAIN/UNIT BITS ZERO FIRST CHECKSUM BLOCK LEAD', got the line {shown(line)}"
    )


def _count_frames(path: Path, channels: Sequence[Channel], position: int) -> int:
    """Return the frames in the file of this channel, by its size. Raises DataError, OSError."""
    channel = channels[position]
    if channel.format not in BITS:
        raise DataError(f"the first line needs the number of samples, as format {channel.format} has no fixed size")
    samples = sum(neighbour.frame for neighbour in channels if neighbour.file == channel.file)  # in a frame
    bits = 8 * (path.with_name(channel.file).stat().st_size - channel.offset)
    frames = bits // (BITS[channel.format] * samples)
    if frames < 1:
        raise DataError(f"the first line has no number of samples, and {channel.file} has none either")
    return frames
