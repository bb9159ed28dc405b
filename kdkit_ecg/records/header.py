"""Read the header of a WFDB record strictly, in every dialect used by the releases of the Challenges.

This is the only parser of headers. wfdb has other rules: it silently replaces a malformed field by a default (a rate of
"fast" becomes 250 Hz), and rejects names such as "E07500.mat" and dates such as 2020-05-12. It receives a header made
of the fields that were parsed here, and only reads the samples.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypeVar

from kdkit import DataError
from kdkit_ecg.records.signal_lines import SignalHeader, parse_signal_lines
from kdkit_ecg.utils.record_files import present_file

Sex = Literal["female", "male"]
T = TypeVar("T")

_DAYS = {"Y": 365.25, "M": 365.25 / 12, "W": 7.0, "D": 1.0}  # in a unit of age in DICOM

_RECORD_LINE = re.compile(r"(?P<name>\S+)\s+(?P<leads>\S+)\s+(?P<rate>[^\s/]+)\S*(?:\s+(?P<samples>\S+))?")
_RECORD_NAME = re.compile(r"(?:\S*/)?(?P<name>[-\w]+)(?:\.\w+)?")
_SEGMENT_LINE = re.compile(r"(?P<name>~|[-\w]+)\s+(?P<samples>\d+)")
_COMMENT_LINE = re.compile(r"#\s*(?P<key>\w+)\s*:(?P<value>.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header(SignalHeader):
    """The fields of a header: those of the signal, and those of the person.

    age in years. codes: SNOMED CT codes without repetition.
    """

    name: str
    age: float | None
    sex: Sex | None
    codes: tuple[str, ...]


def read_header(path: Path) -> Header:
    """Read a .hea file. Raises DataError, which names the file and the expected value, if it is malformed.

    The age is None if it is outside 0 to 120 years (PTB-XL writes 300 for ages over 89) or if two ages differ.
    Diagnoses that are not codes (the first release wrote "RBBB") are skipped. A gain of 0 with a unit is an error.
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
        sexes: dict[str, Sex] = {"f": "female", "female": "female", "m": "male", "male": "male"}
        return Header(
            **{field.name: getattr(signal, field.name) for field in fields(SignalHeader)},
            name=name,
            age=_unanimous([parse_age(value) for value in comments.get("age", [])]),
            sex=_unanimous([sexes.get(value.lower()) for value in comments.get("sex", [])]),
            codes=tuple(dict.fromkeys(code for code in codes if code.isdecimal())),
        )
    except (DataError, OSError) as error:
        raise DataError(f"{path} is not a readable header: {error}") from error


def header_lines(path: Path) -> list[str]:
    """Return the lines of a header that are not empty. Raises DataError if it is not text, OSError."""
    raw = path.read_bytes()
    if b"\0" in raw:
        raise DataError("expected text, got binary data")
    try:
        text = raw.decode("utf-8-sig")  # a byte order mark is not part of the name
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # some releases write a micro sign as one byte
    # Not splitlines(), which also splits at a form feed and at 0x85, the three dots of a Windows code page. Editors of
    # DOS end a file with 0x1a.
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text.replace("\x1a", ""))]
    return [line for line in lines if line]


def read_comments(lines: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of comments such as "#Age: 74" by key, whose case and spaces differ between releases."""
    comments: dict[str, list[str]] = {}
    for match in filter(None, map(_COMMENT_LINE.match, lines)):
        comments.setdefault(match["key"].lower(), []).append(match["value"].strip())
    return comments


def parse_age(text: str) -> float | None:
    """Return an age in years, or None if the text is not an age from 0 to 120. "071Y" as in DICOM is 71 years."""
    dicom = re.fullmatch(r"(\d{1,3})([DWMY])", text)
    try:
        years = int(dicom[1]) * _DAYS[dicom[2]] / _DAYS["Y"] if dicom else float(text)
    except ValueError:
        return None
    return years if math.isfinite(years) and 0 <= years <= 120 else None


def _parse_name(path: Path, record_line: str) -> tuple[str, int]:
    """Return the name of the record and its number of segments, 0 for a record without segments."""
    match = _RECORD_LINE.match(record_line)
    text, segments = (match["name"] if match else ""), 0
    before, slash, after = text.rpartition("/")
    # "R1/4" is a record of four segments, but "sub/101" in 101.hea is a record in a folder.
    if slash and after.isdecimal() and after != path.stem:
        text, segments = before, int(after)
    name = _RECORD_NAME.fullmatch(text)
    if not name:
        raise DataError(f"expected 'NAME LEADS RATE SAMPLES' in the first line, got {record_line[:60]!r}")
    return name["name"], segments


def _parse_numbers(record_line: str) -> tuple[int, float, int]:
    """Return the number of leads, the rate in Hz and the samples per lead from the first line, 0 without samples."""
    match = _RECORD_LINE.match(record_line)
    leads, rate, samples = match.group("leads", "rate", "samples") if match else ("", "", "")
    if not re.fullmatch(r"[1-9]\d*", leads):
        raise DataError(f"the number of leads must be a whole number above 0, got {leads!r}")
    if not re.fullmatch(r"\d+\.?\d*|\.\d+", rate) or not 0 < float(rate) < math.inf:
        raise DataError(f"the rate must be a number of Hz above 0, got {rate!r}")
    if samples is not None and not re.fullmatch(r"[1-9]\d*", samples):
        raise DataError(f"the number of samples must be a whole number above 0, got {samples!r}")
    return int(leads), float(rate), int(samples or 0)


def _parse_signal(path: Path, record_line: str, lines: Sequence[str]) -> SignalHeader:
    count, rate, frames = _parse_numbers(record_line)
    if len(lines) != count:
        raise DataError(f"expected a line for each of the {count} leads in the first line, got {len(lines)} lines")
    return parse_signal_lines(path, lines, rate, frames)


def _parse_segments(path: Path, record_line: str, lines: Sequence[str], count: int) -> SignalHeader:
    """Return the description of a record in several segments, which are records in the same folder, and gaps."""
    _, rate, samples = _parse_numbers(record_line)
    matches = [match for match in map(_SEGMENT_LINE.fullmatch, lines) if match]
    if not len(lines) == len(matches) == count:
        raise DataError(
            f"expected 'NAME SAMPLES' for each of the {count} parts of a record in several segments, got {lines[:1]}"
        )
    # "~" is a gap. A segment without samples only lists leads.
    lengths = [(match["name"], int(match["samples"])) for match in matches if int(match["samples"])]
    parts = [(None if name == "~" else _read_segment(path, name), length) for name, length in lengths]
    signals = [part for part, _ in parts if part]
    if not signals:
        raise DataError("none of its segments has a signal")
    for part, length in parts:
        if part and (part.rate, part.samples) != (rate, length):
            raise DataError(
                f"segment {part.path.stem} has {part.samples} samples at {part.rate:g} Hz, expected {length} at "
                f"{rate:g} Hz"
            )
    # Samples are joined in converter steps, which must mean the same in every segment.
    if len({(part.leads, part.gains_per_unit, part.baselines, part.units, part.formats) for part in signals}) > 1:
        raise DataError("its segments differ in leads, gains, units or formats; join them with wfdb first")
    total = sum(length for _, length in parts)
    if samples not in (0, total):
        raise DataError(f"its segments have {total} samples, expected {samples}")
    return replace(
        signals[0],
        path=path,
        samples=total,
        files=tuple(dict.fromkeys(name for part in signals for name in (part.path.name, *part.files))),
        checks=((0, 0),) * len(signals[0].leads),  # each segment has its own
        segments=tuple(parts),
    )


def _read_segment(path: Path, name: str) -> SignalHeader:
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
