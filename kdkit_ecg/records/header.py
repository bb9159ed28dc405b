"""Read the header of a WFDB record strictly, in every dialect used by the releases of the Challenges.

This is the only parser of headers. wfdb follows different rules: it silently replaces a malformed field with a default
(a rate of "fast" becomes 250 Hz), and rejects names such as "E07500.mat" and dates such as 2020-05-12. It receives a
header made of the fields that were parsed here, and only reads samples that are not plain 16-bit integers.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from kdkit import DataError
from kdkit_ecg.leads import LEADS
from kdkit_ecg.person import parse_age, parse_sex
from kdkit_ecg.records.signal_lines import MAX_LINE, parse_signal_lines
from kdkit_ecg.records.source import MAX_CHANNELS
from kdkit_ecg.records.wfdb_record import Header
from kdkit_ecg.utils.messages import clipped, shown
from kdkit_ecg.utils.record_files import present_file, read_header_bytes

T = TypeVar("T")

MAX_SEGMENTS = 10_000  # of a record; the longest of MIMIC have a few thousand
# Samples of a record in several segments, as a multiple of those in its signal files. Gaps and repeated segments take
# no bytes in any file, so a header alone could request any amount of memory. Even so, at 8 bits or more, a sample has a
# bit in the files; `Preparation.expected_samples` relies on this.
MAX_EXPANSION = 8

# Numbers have ASCII digits and a bounded length everywhere: \d matches digits of any script, and int() refuses more
# than 4,300 digits. Each pattern takes linear time.
_COUNT = re.compile(r"[1-9][0-9]{0,17}")
_RATE = re.compile(r"[0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32}")
_SNOMED_CODE = re.compile(r"[0-9]{1,18}")

_RECORD_LINE = re.compile(r"(?P<name>\S+)\s+(?P<leads>\S+)\s+(?P<rate>[^\s/]+)\S*(?:\s+(?P<samples>\S+))?")
_RECORD_NAME = re.compile(r"(?:\S*/)?(?P<name>[-\w]+)(?:\.\w+)?")
_SEGMENT_LINE = re.compile(r"(?P<name>~|[-\w]+)\s+(?P<samples>[0-9]{1,18})")
_COMMENT_LINE = re.compile(r"#\s*(?P<key>\w+)\s*:(?P<value>.*)")
# In one line, as for INCART on PhysioNet: "# <age>: 65 <sex>: F <diagnoses> (none)".
_COMMENT_TAG = re.compile(r"<(?P<key>\w+)>\s*:(?P<value>[^<]*)")


def read_header(path: Path) -> Header:
    """Read a .hea file. Raises DataError, which names the file and the expected value, if it is malformed.

    The age is None if it is outside 0 to 120 years (PTB-XL writes 300 for ages over 89) or if two ages differ.
    Diagnoses that are not codes (the first release wrote "RBBB") are skipped. A gain of 0 with a unit is an error.
    If a file name has a folder, only the name counts: all files of a record are in the folder of its header.
    """
    try:
        lines = header_lines(path)
        record_line, *other_lines = [line for line in lines if not line.startswith("#")] or [""]
        name, segments = _parse_name(path, record_line)
        if segments:
            signal = _parse_segments(path, record_line, other_lines, segments)
        else:
            signal = _parse_signal(path, record_line, other_lines)
        comments = read_comments(lines)
        codes = [code.strip() for value in comments.get("dx", []) for code in value.split(",")]
        return replace(
            signal,
            name=name,
            age=_unanimous([parse_age(value) for value in comments.get("age", [])]),
            sex=_unanimous([parse_sex(value) for value in comments.get("sex", [])]),
            codes=tuple(dict.fromkeys(code for code in codes if _SNOMED_CODE.fullmatch(code))),
        )
    except (DataError, OSError) as error:
        raise DataError(f"{path} is not a readable header: {error}") from error


def header_lines(path: Path) -> list[str]:
    """Return the lines of a header that are not empty. Raises DataError if it is not text or too long, OSError."""
    raw = read_header_bytes(path)
    if b"\0" in raw:
        raise DataError("expected text, got binary data")
    try:
        text = raw.decode("utf-8-sig")  # a byte order mark is not part of the name
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # some releases write a micro sign as one byte
    # Not splitlines(), which also splits at a form feed and at 0x85, the three dots of a Windows code page. Editors of
    # DOS end a file with 0x1a.
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text.replace("\x1a", ""))]
    for line in lines if len(text) > MAX_LINE else ():
        if len(line) > MAX_LINE and not line.startswith("#"):
            raise DataError(f"expected lines of at most {MAX_LINE:,} characters, got one of {len(line):,}")
    return [line for line in lines if line]


def read_comments(lines: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of comments such as "#Age: 74" by key, whose case and spaces differ between releases.

    Also those of "# <age>: 74 <sex>: F".
    """
    comments: dict[str, list[str]] = {}
    tags = (match for line in lines if line.startswith("#") for match in _COMMENT_TAG.finditer(line))
    for match in (*filter(None, map(_COMMENT_LINE.match, lines)), *tags):
        comments.setdefault(match["key"].lower(), []).append(match["value"].strip())
    return comments


def _parse_name(path: Path, record_line: str) -> tuple[str, int]:
    """Return the name of the record and its number of segments, 0 for a record without segments."""
    match = _RECORD_LINE.match(record_line)
    text, segments = (match["name"] if match else ""), 0
    before, slash, after = text.rpartition("/")
    # "R1/4" is a record of four segments, but "sub/101" in 101.hea is a record in a folder.
    if slash and _COUNT.fullmatch(after) and after != path.stem:
        text, segments = before, int(after)
    name = _RECORD_NAME.fullmatch(text)
    if not name:
        raise DataError(f"expected 'NAME LEADS RATE SAMPLES' in the first line, got {shown(record_line)}")
    if ".." in text.split("/"):
        raise DataError(f"expected the name of a record in the folder of the header, got {shown(text)}")
    if segments > MAX_SEGMENTS:
        raise DataError(f"expected at most {MAX_SEGMENTS:,} segments, got {segments:,}")
    return name["name"], segments


def _parse_numbers(record_line: str) -> tuple[int, float, int]:
    """Return the number of leads, the rate in Hz and the samples per lead from the first line, 0 without samples."""
    match = _RECORD_LINE.match(record_line)
    leads, rate, samples = match.group("leads", "rate", "samples") if match else ("", "", "")
    if not _COUNT.fullmatch(leads):
        raise DataError(f"the number of leads must be a whole number above 0, got {shown(leads)}")
    if not _RATE.fullmatch(rate) or not float(rate) > 0:
        raise DataError(f"the rate must be a number of Hz above 0, got {shown(rate)}")
    if samples not in (None, "0") and not _COUNT.fullmatch(samples):  # 0 is unknown in WFDB too
        raise DataError(f"the number of samples must be a whole number above 0, got {shown(samples)}")
    return int(leads), float(rate), int(samples or 0)


def _parse_signal(path: Path, record_line: str, lines: Sequence[str]) -> Header:
    count, rate, frames = _parse_numbers(record_line)
    if count > MAX_CHANNELS:
        raise DataError(f"expected at most {MAX_CHANNELS:,} leads, got {count:,}")
    if len(lines) != count:
        raise DataError(f"expected a line for each of the {count} leads in the first line, got {len(lines)} lines")
    return parse_signal_lines(path, lines, rate, frames)


def _parse_segments(path: Path, record_line: str, lines: Sequence[str], count: int) -> Header:
    """Return the description of a record in several segments, which are records in the same folder, and gaps."""
    _, rate, samples = _parse_numbers(record_line)
    matches = [match for match in map(_SEGMENT_LINE.fullmatch, lines) if match]
    if not len(lines) == len(matches) == count:
        raise DataError(
            f"expected 'NAME SAMPLES' for each of the {count} parts of a record in several segments, got "
            f"{[clipped(line) for line in lines[:1]]}"
        )
    # "~" is a gap. A segment without samples only lists leads.
    lengths = [(match["name"], int(match["samples"])) for match in matches if int(match["samples"])]
    read_segment = cache(lambda name: _read_segment(path, name))  # a name may occur thousands of times
    parts = [(None if name == "~" else read_segment(name), length) for name, length in lengths]
    signals = [part for part, _ in parts if part]
    if not signals:
        raise DataError("none of its segments has a signal")
    for part, length in parts:
        if part and (part.rate, part.samples) != (rate, length):
            raise DataError(
                f"segment {part.path.stem} has {part.samples} samples at {part.rate:g} Hz, expected {length} at "
                f"{rate:g} Hz"
            )
    leads = _common_leads(signals)
    selected = {id(part): part.select(leads) for part in signals}  # a segment that is repeated stays one object
    parts = [(part and selected[id(part)], length) for part, length in parts]
    signals = [part for part, _ in parts if part]
    # Samples are joined in the steps of the finest converter: those of other segments are scaled to them.
    finest = max(signals, key=lambda part: min(map(abs, part.gains)))
    total = sum(length for _, length in parts)
    in_files = sum(part.samples for part in {id(part): part for part in signals}.values())
    if total > MAX_EXPANSION * in_files:
        raise DataError(
            f"its segments have {in_files:,} different samples, but {total:,} with all gaps and repetitions; expected "
            f"at most {MAX_EXPANSION} times as many"
        )
    if samples not in (0, total):
        raise DataError(f"its segments have {total} samples, expected {samples}")
    return replace(
        finest,
        path=path,
        samples=total,
        files=tuple(dict.fromkeys(name for part in signals for name in (part.path.name, *part.files))),
        checks=((0, 0),) * len(leads),  # each segment has its own
        default_gains=tuple(lead for lead in leads if any(lead in part.default_gains for part in signals)),
        counted=any(part.counted for part in signals),
        renamed_files=tuple(dict.fromkeys(name for part in signals for name in part.renamed_files)),
        segments=tuple(parts),
    )


def _common_leads(parts: Sequence[Header]) -> list[str]:
    """Return the leads that all segments have, in the order of the first one.

    Raises DataError if one of the twelve leads is absent in a segment, or if units differ.
    """
    first = parts[0]
    common = [lead for lead in first.leads if all(lead in part.leads for part in parts)]
    twelve = {lead for lead in common if lead in LEADS}
    for part in parts:
        if common and part.normalised == first.normalised and {lead for lead in part.leads if lead in LEADS} == twelve:
            continue
        # A lead that is absent in a segment would be a straight line there, which a network would take for a signal. A
        # segment that has the lead is more useful as a separate record than without it.
        differing = part if part is not first else next(part for part in parts if part.leads != first.leads)
        raise DataError(
            f"its segments have different leads or units, so they cannot be joined: {_leads_and_unit(first)}, but "
            f"{_leads_and_unit(differing)}; use the segments as records of their own, or join them with wfdb first"
        )
    return common


def _leads_and_unit(part: Header) -> str:
    unit = " in standard deviations" if part.normalised else ""
    return f"{part.path.stem} has {clipped(', '.join(part.leads))}{unit}"


def _read_segment(path: Path, name: str) -> Header:
    segment_path = present_file(path.with_name(f"{name}.hea"))
    try:
        record_line, *lines = [line for line in header_lines(segment_path) if not line.startswith("#")] or [""]
        if _parse_name(segment_path, record_line)[1]:
            raise DataError("it has several segments, but is a segment itself")
        return _parse_signal(segment_path, record_line, lines)
    except (DataError, OSError) as error:
        raise DataError(f"segment {name} cannot be read: {error}") from error


def _unanimous(values: list[T | None]) -> T | None:
    """Return the value that all lines agree on, or None if there is no line or they contradict each other."""
    return values[0] if len(set(values)) == 1 else None
