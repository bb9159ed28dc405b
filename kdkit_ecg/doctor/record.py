"""Examine one record: first its header, then its signal."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kdkit import KdkitError
from kdkit.errors import first_line
from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.waveform import examine_signal
from kdkit_ecg.labels import is_snomed_code, scored_classes
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.filters import BAND
from kdkit_ecg.records.header import header_lines, read_comments
from kdkit_ecg.records.open_file import open_file
from kdkit_ecg.records.source import missing_files
from kdkit_ecg.records.wfdb_record import Header
from kdkit_ecg.utils.messages import without_file
from kdkit_ecg.utils.tables import is_missing


def examine(folder: Path, path: Path, *, leads: Sequence[str] = LEADS, own_labels: bool = False) -> RecordReport:
    """Return the findings about the record in this file. No content of the files raises an exception.

    path: a WFDB header, or a DICOM, XML or EDF file. leads: the leads that a record needs, or can derive.
    own_labels: whether its labels are in a table, so that it needs no scored code.
    """
    record = RecordReport.of(folder, path)
    try:
        (source,) = open_file(path)
    except KdkitError as error:  # also if the package that reads a format is missing
        record.add(Reason.HEADER, without_file(error))
        return record
    record.rate, record.samples, record.leads = source.rate, source.samples, source.leads
    record.age, record.sex, record.codes = source.age, source.sex, source.codes
    if isinstance(source, Header):
        record.name, record.files = source.name, source.files
        _examine_header(record, source, codes=not own_labels)
    absent = source.absent_leads(leads)
    unknown = [lead for lead in source.leads if lead not in (*LEADS, *leads)]
    if absent:
        record.add(
            Reason.LEADS, f"without {', '.join(absent)}" + (f"; unknown: {', '.join(unknown)}" if unknown else "")
        )
    elif not set(leads) <= set(source.leads):
        record.add(Reason.DERIVED, ", ".join(lead for lead in leads if lead not in source.leads))
    if source.normalised:
        record.add(Reason.UNITS)
    if source.rate <= 2 * BAND[1]:
        record.add(Reason.RATE, f"{source.rate:g} Hz")
    missing = missing_files(source)
    if missing:
        record.add(Reason.NO_SIGNAL, ", ".join(missing))
    else:
        try:
            examine_signal(record, source, leads)
        except (OSError, MemoryError) as error:  # e.g. no permission to read the file
            record.add(Reason.SIGNAL, first_line(error))
    return record


def _examine_header(record: RecordReport, header: Header, *, codes: bool) -> None:
    if len(header.leads) < len(header.channels):
        record.add(Reason.CHANNELS, f"{len(header.channels) - len(header.leads)} of {len(header.channels)}")
    if header.default_gains:
        record.add(Reason.NO_GAIN, ", ".join(header.default_gains))
    if header.counted:
        record.add(Reason.NO_LENGTH, f"{header.samples:,}")
    if header.renamed_files:
        record.add(Reason.FILE_NAME, ", ".join(header.renamed_files))
    # The comments are read again: read_header drops ages and codes that are not valid.
    comments = read_comments(header_lines(header.path))
    ages = [age for age in comments.get("age", []) if not is_missing(age)]
    if header.age is None and ages:
        record.implausible_age = True
        record.add(Reason.AGE, ", ".join(ages))
    if not codes:
        return
    written = [code.strip() for line in comments.get("dx", []) for code in line.split(",") if code.strip()]
    repeated = [code for code, count in Counter(written).items() if count > 1]
    if repeated:
        record.add(Reason.REPEATED, ", ".join(repeated))
    invalid = [code for code in dict.fromkeys(written) if not is_snomed_code(code)]
    if invalid:
        record.add(Reason.NO_CODE, ", ".join(invalid))
    if not any(scored_classes(year).row(header.codes).any() for year in (2020, 2021)):
        record.add(Reason.CODES, ", ".join(header.codes) or "no code at all")
