"""Examine one record by itself: what its header says, then its signal."""

import re
from collections import Counter
from pathlib import Path, PurePath

from kdkit import DataError
from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.snomed import is_code
from kdkit_ecg.doctor.waveform import examine_signal
from kdkit_ecg.labels import scored_classes
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.database import database_of
from kdkit_ecg.records.header import Header, read_header
from kdkit_ecg.records.record import missing_files

GAINS = (20.0, 50_000.0)  # steps per mV: converters resolve between 50 uV and 20 nV

_COMMENT = re.compile(r"#\s*(age|dx)\s*:(.*)", re.IGNORECASE)
_UNKNOWN = {"", "nan", "unknown", "n/a", "none"}


def examine(folder: Path, path: Path) -> RecordReport:
    """Return what is found of the record with this header; raises nothing for whatever stands in it."""
    relative = path.relative_to(folder)
    record = RecordReport(
        path=relative.with_suffix("").as_posix(), database=database_of(PurePath(relative)), findings=[]
    )
    try:
        header = read_header(path)
    except DataError as error:
        record.add(Reason.HEADER, str(error).removeprefix(f"{path} is not a readable header: "))
        return record
    record.name, record.rate, record.samples = header.name, header.rate, header.samples
    record.leads, record.age, record.sex, record.codes = header.leads, header.age, header.sex, header.codes
    _told(record, header)
    _units(record, header)
    missing = missing_files(header)
    if missing:
        record.add(Reason.NO_SIGNAL, ", ".join(missing))
    else:
        try:
            examine_signal(record, header)
        except OSError as error:  # such as a file that may not be read
            record.add(Reason.SIGNAL, str(error))
    return record


def _told(record: RecordReport, header: Header) -> None:
    """Look at what the header says of the person and of the findings."""
    comments: dict[str, list[str]] = {"age": [], "dx": []}
    for line in header.path.read_bytes().decode("latin-1").splitlines():
        match = _COMMENT.match(line.strip())
        if match:
            comments[match[1].lower()].append(match[2].strip())
    absurd = [age for age in comments["age"] if age.lower() not in _UNKNOWN]
    if header.age is None and absurd:
        record.absurd_age = True
        record.add(Reason.AGE, ", ".join(absurd))
    codes = [code.strip() for line in comments["dx"] for code in line.split(",") if code.strip()]
    repeated = [code for code, count in Counter(codes).items() if count > 1]
    if repeated:
        record.add(Reason.REPEATED, ", ".join(repeated))
    strange = [code for code in dict.fromkeys(codes) if not is_code(code)]
    if strange:
        record.add(Reason.NO_CODE, ", ".join(strange))
    if not any(scored_classes(year).row(header.codes).any() for year in (2020, 2021)):
        record.add(Reason.CODES, ", ".join(header.codes) or "no code at all")


def _units(record: RecordReport, header: Header) -> None:
    lacking = [lead for lead in LEADS if lead not in header.leads]
    if lacking:
        record.add(Reason.LEADS, f"without {', '.join(lacking)}")
    if header.normalised:
        record.add(Reason.UNITS)
        return
    absurd = sorted({gain for gain in header.gains if not GAINS[0] <= abs(gain) <= GAINS[1]})
    if absurd:
        record.add(Reason.GAIN, f"{', '.join(f'{gain:g}' for gain in absurd)} steps per mV")
