"""Read the header of a WFDB record strictly, in every dialect the Challenge's releases were written in.

wfdb takes a default wherever a field is malformed (a rate of "fast" becomes 250 Hz), and refuses the record names
"E07500.mat" of an early release. So the fields are checked here, and wfdb reads the samples.
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
Known = TypeVar("Known")

# What one unit is in mV; NU (normalised units) are standard deviations and are left as they are.
UNITS: Mapping[str, float] = MappingProxyType(
    {"": 1.0, "mv": 1.0, "uv": 1e-3, "\u00b5v": 1e-3, "\u03bcv": 1e-3, "v": 1e3, "nu": 1.0}
)
_APART = ("path", "name", "age", "sex", "codes")  # what no signal changes with
_CANONICAL = {lead.lower(): lead for lead in LEADS}

# Not one form more than wfdb's own expressions take: what they miss becomes a default without a word.
_RECORD = re.compile(
    r"(?P<name>[-\w]+)(?:\.\w+)?(?P<segments>/\d+)?\s+(?P<leads>\S+)\s+(?P<rate>[^\s/]+)\S*\s+(?P<samples>\S+)"
)
_SIGNAL = re.compile(
    r"(?P<file>~?[-\w]+(?:\.\w+)?)\s+\d+(?:x\d+)?(?::\d+)?(?:\+\d+)?"
    r"\s+(?P<gain>-?\d+\.?\d*(?:e[-+]?\d+)?)(?:\((?P<baseline>-?\d+)\))?(?:/(?P<unit>\S+))?"
    r"\s+\d+\s+(?P<zero>-?\d+)\s+(?P<first>-?\d+)\s+(?P<checksum>-?\d+)\s+\d+\s+(?P<lead>\S.*)"
)
_COMMENT = re.compile(r"#\s*(?P<key>\w+)\s*:(?P<value>.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a header says: of the signal, lead by lead in the file's order, and of the person.

    rate in Hz, samples per lead, gains in steps of the converter per mV, baselines in steps, units in lower case,
    age in years. codes: SNOMED CT codes, each once. checks: the first sample and the checksum of each lead.
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
    def of_signal(self) -> tuple[tuple[str, object], ...]:
        """What it says of the signal, by name: all but where it is, what it is called and who it is of."""
        return tuple((each.name, getattr(self, each.name)) for each in fields(self) if each.name not in _APART)


def read_header(path: Path) -> Header:
    """Read a .hea file; anything malformed raises a DataError that names the file and says what was expected.

    An age outside 0 to 120 years is unknown (PTB-XL writes 300 for over 89), as are two ages that differ. Diagnoses
    that are no codes (the first release wrote "RBBB") are left out. A gain of 0, "not calibrated", is refused.
    """
    try:
        return _header(path, _text(path))
    except (DataError, OSError) as error:
        raise DataError(f"{path} is not a readable header: {error}") from error


def known_age(value: str) -> float | None:
    """Return years; None for what is no age from 0 to 120."""
    try:
        years = float(value)
    except ValueError:
        return None
    return years if math.isfinite(years) and 0 <= years <= 120 else None


def _text(path: Path) -> str:
    raw = path.read_bytes()
    if b"\0" in raw:
        raise DataError("expected text, but it is binary")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _header(path: Path, text: str) -> Header:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    record, *signals = [line for line in lines if not line.startswith("#")] or [""]
    name, count, rate, samples = _record(record)
    if len(signals) != count:
        raise DataError(f"the first line promises {count} leads, but {len(signals)} lines follow")
    fields = [_signal(line) for line in signals]
    leads = tuple(_CANONICAL.get(field["lead"].lower(), field["lead"]) for field in fields)
    if len({lead.lower() for lead in leads}) < count:
        raise DataError(f"each lead is named once, but they are {', '.join(leads)}")
    units = tuple((field["unit"] or "").lower() for field in fields)
    comments = _comments([line for line in lines if line.startswith("#")])
    return Header(
        path=path,
        name=name,
        rate=rate,
        samples=samples,
        leads=leads,
        files=tuple(dict.fromkeys(field["file"] for field in fields)),
        gains=tuple(float(field["gain"]) / UNITS[unit] for field, unit in zip(fields, units, strict=True)),
        baselines=tuple(int(field["baseline"] or field["zero"]) for field in fields),
        units=units,
        checks=tuple((int(field["first"]), int(field["checksum"])) for field in fields),
        age=_only([known_age(value) for value in comments.get("age", [])]),
        sex=_only([_sex(value) for value in comments.get("sex", [])]),
        codes=_codes(comments.get("dx", [])),
    )


def _record(line: str) -> tuple[str, int, float, int]:
    """Return name, number of leads, rate in Hz and samples per lead of the first line."""
    match = _RECORD.match(line)
    if not match:
        raise DataError(f"expected 'NAME LEADS RATE SAMPLES' in the first line, but it is {line[:60]!r}")
    if match["segments"]:
        raise DataError("records in several segments are not read; join them with wfdb first")
    if not re.fullmatch(r"[1-9]\d*", match["leads"]):
        raise DataError(f"the number of leads is a whole number above 0, not {match['leads']!r}")
    if not re.fullmatch(r"\d+\.?\d*|\.\d+", match["rate"]) or not float(match["rate"]):
        raise DataError(f"the rate is a number of Hz above 0, not {match['rate']!r}")
    if not re.fullmatch(r"[1-9]\d*", match["samples"]):
        raise DataError(f"the number of samples is a whole number above 0, not {match['samples']!r}")
    return match["name"], int(match["leads"]), float(match["rate"]), int(match["samples"])


def _signal(line: str) -> dict[str, str]:
    match = _SIGNAL.fullmatch(line)
    if not match:
        raise DataError(f"expected 'FILE FORMAT GAIN/UNIT BITS ZERO FIRST CHECKSUM BLOCK LEAD', but a line is {line!r}")
    if not float(match["gain"]):
        raise DataError(f"a gain of 0 leaves the amplitude unknown; write steps per mV in {line!r}")
    if (match["unit"] or "").lower() not in UNITS:
        raise DataError(f"{match['unit']!r} is not a unit of voltage; there are mV, uV, V and NU")
    return match.groupdict()


def _comments(lines: list[str]) -> dict[str, list[str]]:
    comments: dict[str, list[str]] = {}
    for match in filter(None, map(_COMMENT.match, lines)):
        comments.setdefault(match["key"].lower(), []).append(match["value"].strip())
    return comments


def _only(values: list[Known | None]) -> Known | None:
    """Return the one thing that all lines say, None where they say nothing or contradict each other."""
    return values[0] if len(set(values)) == 1 else None


def _sex(value: str) -> Sex | None:
    sexes: dict[str, Sex] = {"f": "female", "female": "female", "m": "male", "male": "male"}
    return sexes.get(value.lower())


def _codes(values: list[str]) -> tuple[str, ...]:
    codes = [code.strip() for value in values for code in value.split(",")]
    return tuple(dict.fromkeys(code for code in codes if code.isdecimal()))
