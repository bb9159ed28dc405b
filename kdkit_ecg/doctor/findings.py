"""Name all that can be wrong with a record, and whether it is then bad or only odd."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from kdkit_ecg.records.header import Sex


class Reason(StrEnum):
    """What was found. Bad: the loaders leave the record out, or its signal is of no use. Odd: it is usable."""

    HEADER = "unreadable header"
    NO_SIGNAL = "no signal file"
    NO_HEADER = "a signal that no header names"
    LEADS = "not all of the twelve leads"
    UNITS = "normalised units (NU), not mV"
    CODES = "no code that 2020 or 2021 scores"
    SHAPE = "a signal of another shape than its header says"
    SIGNAL = "unreadable signal"
    CHECKSUM = "samples that do not add up to the header's checksum"
    EMPTY = "no lead with a signal"
    NAME = "the name of another record"
    TWIN = "the signal of another record"
    SCALED_TWIN = "the signal of another record but for gain, offset or rounding"
    FLAT = "flat leads"
    INVALID = "samples marked invalid"
    CLIPPED = "clipped leads"
    GAIN = "an absurd gain"
    AMPLITUDE = "an absurd amplitude"
    LONGER = "more samples in the file than the header says"
    AGE = "an absurd age"
    REPEATED = "a code more than once"
    NO_CODE = "a diagnosis that is no SNOMED CT code"

    @property
    def bad(self) -> bool:
        """Whether a record is bad for it."""
        return self not in _ODD


_ODD = frozenset(
    {
        Reason.SCALED_TWIN,
        Reason.FLAT,
        Reason.INVALID,
        Reason.CLIPPED,
        Reason.GAIN,
        Reason.AMPLITUDE,
        Reason.LONGER,
        Reason.AGE,
        Reason.REPEATED,
        Reason.NO_CODE,
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A reason, and what exactly was found."""

    reason: Reason
    detail: str = ""


@dataclass(slots=True, kw_only=True, eq=False)
class RecordReport:
    """What is kept of a record: about a kilobyte, so that a survey of any size fits in memory.

    path: of its header below the folder, without suffix. rate in Hz, age in years; absurd_age: one is given that
    cannot be. sketch: see sketch.py, None where there is no signal to compare.
    """

    path: str
    database: str
    findings: list[Finding]
    name: str = ""
    rate: float = 0.0
    samples: int = 0
    leads: tuple[str, ...] = ()
    age: float | None = None
    absurd_age: bool = False
    sex: Sex | None = None
    codes: tuple[str, ...] = ()
    sketch: NDArray[np.float32] | None = None

    @property
    def bad(self) -> bool:
        """Whether any finding is bad."""
        return any(each.reason.bad for each in self.findings)

    def add(self, reason: Reason, detail: str = "") -> None:
        """Note a finding."""
        self.findings.append(Finding(reason, detail))
