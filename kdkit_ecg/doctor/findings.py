"""List the possible findings about a record, and hold those of one record."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kdkit_ecg.person import Sex
from kdkit_ecg.utils.record_files import unsharded_folder, without_suffix


class Reason(StrEnum):
    """A kind of finding. Bad: the loaders exclude the record, or its signal is useless. Odd: the record is usable."""

    HEADER = "unreadable header"
    NO_SIGNAL = "no signal file"
    NO_HEADER = "a signal without a header"
    LEADS = "missing leads"
    UNITS = "normalised units (NU), not mV"
    RATE = "a rate too low for the default band-pass"
    CODES = "no code that 2020 or 2021 scores"
    SHAPE = "a signal with a different shape from the header"
    SIGNAL = "unreadable signal"
    CHECKSUM = "samples that do not match the first samples and checksums in the header"
    EMPTY = "no lead with a signal"
    NAME = "the name of another record"
    DUPLICATE = "the signal of another record"
    SCALED_DUPLICATE = "the signal of another record except for gain, offset or rounding"
    FLAT = "flat leads"
    INVALID = "samples marked as invalid"
    CLIPPED = "clipped leads"
    NO_GAIN = "no gain, so the default of WFDB is assumed"
    NO_LENGTH = "no number of samples, so that of the signal file is used"
    FILE_NAME = "a signal file without its suffix in the header"
    DERIVED = "leads computed from two other limb leads"
    CHANNELS = "channels that are not read"
    GAIN = "an implausible gain"
    AMPLITUDE = "an implausible amplitude"
    LONGER = "more samples in the file than in the header"
    AGE = "an implausible age"
    REPEATED = "a repeated code"
    NO_CODE = "a diagnosis that is not a SNOMED CT code"

    @property
    def bad(self) -> bool:
        """Whether this finding makes a record bad."""
        return self not in _ODD


_ODD = frozenset(
    {
        Reason.SCALED_DUPLICATE,
        Reason.FLAT,
        Reason.INVALID,
        Reason.CLIPPED,
        Reason.NO_GAIN,
        Reason.NO_LENGTH,
        Reason.FILE_NAME,
        Reason.DERIVED,
        Reason.CHANNELS,
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
    """The kind of a finding, and its details in this record."""

    reason: Reason
    detail: str = ""


@dataclass(slots=True, kw_only=True, eq=False)
class RecordReport:
    """The findings and header fields of a record, about a kilobyte, so that a survey of any size fits in memory.

    path: of the header, or of a file of another format, relative to the folder, without suffix. header: that file, or
    the signal if there is no header.
    database: the folder without shards. rate in Hz, age in years.
    implausible_age: the header contains an age that cannot be right. sketch: see signal_sketch.py; None if there is no
    signal to compare. files: names of the files in its folder that the header names, with headers of segments.
    """

    path: str
    header: Path
    database: str
    findings: list[Finding]
    name: str = ""
    rate: float = 0.0
    samples: int = 0
    leads: tuple[str, ...] = ()
    age: float | None = None
    implausible_age: bool = False
    sex: Sex | None = None
    codes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    sketch: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, folder: Path, path: Path) -> Self:
        """Return a report without findings about the record with this file in the folder."""
        relative = path.relative_to(folder)
        name = without_suffix(relative).as_posix()
        return cls(path=name, header=path, database=unsharded_folder(PurePath(relative)), findings=[])

    @property
    def bad(self) -> bool:
        """Whether any finding is bad."""
        return any(finding.reason.bad for finding in self.findings)

    @property
    def odd(self) -> bool:
        """Whether there are findings, and none of them is bad."""
        return bool(self.findings) and not self.bad

    def add(self, reason: Reason, detail: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(reason, detail))
