"""Read the header of a WFDB record strictly, in every dialect used by the releases of the Challenges.

wfdb silently replaces a malformed field by a default (a rate of "fast" becomes 250 Hz), and rejects record names such
as "E07500.mat" of an early release. Therefore the fields are checked here, and wfdb only reads the samples.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from kdkit import DataError
from kdkit_ecg.leads import LEADS

Sex = Literal["female", "male"]
T = TypeVar("T")

# Size of a unit in mV. NU (normalised units) are standard deviations, and are not converted.
UNITS: Mapping[str, float] = MappingProxyType(
    {"": 1.0, "mv": 1.0, "uv": 1e-3, "\u00b5v": 1e-3, "\u03bcv": 1e-3, "v": 1e3, "nu": 1.0}
)
_NOT_OF_SIGNAL = ("path", "name", "age", "sex", "codes")  # fields that the prepared signal does not depend on
_STANDARD_CASE = {lead.lower(): lead for lead in LEADS}

# These expressions accept nothing that the ones of wfdb do not: it replaces a field it cannot match by a default.
_RECORD_LINE = re.compile(
    r"(?P<name>[-\w]+)(?:\.\w+)?(?P<segments>/\d+)?\s+(?P<leads>\S+)\s+(?P<rate>[^\s/]+)\S*\s+(?P<samples>\S+)"
)
_SIGNAL_LINE = re.compile(
    r"(?P<file>~?[-\w]+(?:\.\w+)?)\s+\d+(?:x\d+)?(?::\d+)?(?:\+\d+)?"
    r"\s+(?P<gain>-?\d+\.?\d*(?:e[-+]?\d+)?)(?:\((?P<baseline>-?\d+)\))?(?:/(?P<unit>\S+))?"
    r"\s+\d+\s+(?P<zero>-?\d+)\s+(?P<first>-?\d+)\s+(?P<checksum>-?\d+)\s+\d+\s+(?P<lead>\S.*)"
)
_COMMENT_LINE = re.compile(r"#\s*(?P<key>\w+)\s*:(?P<value>.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The fields of a header: those of the signal, lead by lead in the order of the file, and those of the person.

    rate in Hz, samples per lead, gains in converter steps per mV, baselines in steps, units in lower case, age in
    years. codes: SNOMED CT codes without repetition. checks: the first sample and the checksum of each lead.
    """

    path: Path
    name: str
    rate: float
    samples: int
    leads: tuple[str, ...]
    files: tuple[str, ...]
    gains: tuple[float, ...]
    baselines: tuple[int, ...]
    units: tuple[str, ...]
    checks: tuple[tuple[int, int], ...]
    age: float | None
    sex: Sex | None
    codes: tuple[str, ...]

    @property
    def normalised(self) -> bool:
        """Whether any lead is in normalised units (NU)."""
        return "nu" in self.units

    @property
    def signal_fields(self) -> tuple[tuple[str, object], ...]:
        """Name and value of every field that describes the signal: all but path, name, person and codes."""
        names = [field.name for field in fields(self) if field.name not in _NOT_OF_SIGNAL]
        return tuple((name, getattr(self, name)) for name in names)


def read_header(path: Path) -> Header:
    """Read a .hea file. Raises DataError, which names the file and the expected value, if it is malformed.

    The age is None if it is outside 0 to 120 years (PTB-XL writes 300 for ages over 89) or if two ages differ.
    Diagnoses that are not codes (the first release wrote "RBBB") are skipped. A gain of 0, "not calibrated", is an
    error.
    """
    try:
        return _parse_header(path)
    except (DataError, OSError) as error:
        raise DataError(f"{path} is not a readable header: {error}") from error


def parse_age(text: str) -> float | None:
    """Return an age in years, or None if the text is not an age from 0 to 120."""
    try:
        years = float(text)
    except ValueError:
        return None
    return years if math.isfinite(years) and 0 <= years <= 120 else None


def _parse_header(path: Path) -> Header:
    raw = path.read_bytes()
    if b"\0" in raw:
        raise DataError("expected text, got binary data")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # some releases write a micro sign as one byte
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    record_line, *signal_lines = [line for line in lines if not line.startswith("#")] or [""]
    name, count, rate, samples = _parse_record_line(record_line)
    if len(signal_lines) != count:
        raise DataError(
            f"expected a line for each of the {count} leads in the first line, got {len(signal_lines)} lines"
        )
    signals = [_parse_signal_line(line) for line in signal_lines]
    # Leads outside the twelve keep their case, but two names that differ only in case are one lead.
    leads = tuple(_STANDARD_CASE.get(signal["lead"].lower(), signal["lead"]) for signal in signals)
    if len({lead.lower() for lead in leads}) < count:
        raise DataError(f"expected every lead once, got {', '.join(leads)}")
    units = tuple((signal["unit"] or "").lower() for signal in signals)
    # The Challenges append comments such as "#Age: 74", whose case and spaces differ between releases.
    comments: dict[str, list[str]] = {}
    for match in filter(None, map(_COMMENT_LINE.match, lines)):
        comments.setdefault(match["key"].lower(), []).append(match["value"].strip())
    codes = [code.strip() for value in comments.get("dx", []) for code in value.split(",")]
    sexes: dict[str, Sex] = {"f": "female", "female": "female", "m": "male", "male": "male"}
    return Header(
        path=path,
        name=name,
        rate=rate,
        samples=samples,
        leads=leads,
        # The leads of most records are in one file, which is listed once.
        files=tuple(dict.fromkeys(signal["file"] for signal in signals)),
        gains=tuple(float(signal["gain"]) / UNITS[unit] for signal, unit in zip(signals, units, strict=True)),
        # WFDB: a missing baseline is the ADC zero of the lead.
        baselines=tuple(int(signal["baseline"] or signal["zero"]) for signal in signals),
        units=units,
        checks=tuple((int(signal["first"]), int(signal["checksum"])) for signal in signals),
        age=_unanimous([parse_age(value) for value in comments.get("age", [])]),
        sex=_unanimous([sexes.get(value.lower()) for value in comments.get("sex", [])]),
        codes=tuple(dict.fromkeys(code for code in codes if code.isdecimal())),
    )


def _parse_record_line(line: str) -> tuple[str, int, float, int]:
    """Return name, number of leads, rate in Hz and samples per lead from the first line."""
    match = _RECORD_LINE.match(line)
    if not match:
        raise DataError(f"expected 'NAME LEADS RATE SAMPLES' in the first line, got {line[:60]!r}")
    if match["segments"]:
        raise DataError("records with several segments are not supported; join the segments with wfdb first")
    if not re.fullmatch(r"[1-9]\d*", match["leads"]):
        raise DataError(f"the number of leads must be a whole number above 0, got {match['leads']!r}")
    if not re.fullmatch(r"\d+\.?\d*|\.\d+", match["rate"]) or not float(match["rate"]):
        raise DataError(f"the rate must be a number of Hz above 0, got {match['rate']!r}")
    if not re.fullmatch(r"[1-9]\d*", match["samples"]):
        raise DataError(f"the number of samples must be a whole number above 0, got {match['samples']!r}")
    return match["name"], int(match["leads"]), float(match["rate"]), int(match["samples"])


def _parse_signal_line(line: str) -> dict[str, str]:
    match = _SIGNAL_LINE.fullmatch(line)
    if not match:
        raise DataError(f"expected 'FILE FORMAT GAIN/UNIT BITS ZERO FIRST CHECKSUM BLOCK LEAD', got the line {line!r}")
    if not float(match["gain"]):
        raise DataError(f"a gain of 0 leaves the amplitude unknown; write steps per mV in {line!r}")
    if (match["unit"] or "").lower() not in UNITS:
        raise DataError(f"{match['unit']!r} is not a supported unit; expected mV, uV, V or NU")
    return match.groupdict()


def _unanimous(values: list[T | None]) -> T | None:
    """Return the value that all lines agree on, or None if there is no line or they contradict each other."""
    return values[0] if len(set(values)) == 1 else None
