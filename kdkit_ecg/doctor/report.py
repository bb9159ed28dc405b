"""Report a survey: as tables on the console, and as JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from kdkit.utils.printable import printable
from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.survey import Survey
from kdkit_ecg.labels import Year, scored_classes
from kdkit_ecg.utils.messages import EXPORT, NOT_LISTED, clipped, first_names
from kdkit_ecg.utils.record_files import counted_kinds

MAX_NAMES = 3  # records to name for each reason, unless all are requested
MAX_FOLDERS = 40  # rows of the table of folders


def print_survey(survey: Survey, console: Console, *, all_names: bool) -> None:
    """Print databases, classes, and each reason with its first records, or all records with their details."""
    console.print(_database_table(survey))
    for year in get_args(Year):
        by_class = _class_counts(survey, year)
        if not any(by_class.values()):  # such as for records whose labels are in a table
            continue
        table = Table(title=f"Classes of {year}, in records that are not bad", title_justify="left")
        table.add_column("class")
        table.add_column("records", justify="right")
        table.add_column("of which in", overflow="fold")
        for name, counts in by_class.items():
            by_database = ", ".join(f"{printable(database)} {count}" for database, count in counts.most_common())
            table.add_row(name, str(counts.total()), by_database)
        console.print(table)
    for title, bad in (("Bad", True), ("Odd", False)):
        reasons = [reason for reason in Reason if reason.bad == bad and _records_with(survey, reason)]
        if reasons:
            console.print(f"{title}:")
        for reason in reasons:
            records = _records_with(survey, reason)
            named = records if all_names else records[:MAX_NAMES]
            # One line per name: a line break in a file name could imitate a line of the report.
            descriptions = [printable(f"{path} ({clipped(detail, 200)})" if detail else path) for path, detail in named]
            if all_names:
                lines = [f"  {len(records):,} {reason}:", *(f"    {description}" for description in descriptions)]
            else:
                more = ", ..." if len(records) > MAX_NAMES else ""
                lines = [f"  {len(records):,} {reason}: {', '.join(descriptions)}{more}"]
            for line in lines:
                console.print(line, soft_wrap=True)
    if survey.unfinished:
        console.print(f"{survey.unfinished} unfinished .part files: run kdkit ecg fetch again to resume them")
    if survey.not_listed:
        console.print(f"{len(survey.not_listed)} {NOT_LISTED}: {first_names(survey.not_listed)}", soft_wrap=True)
    if survey.numbers:
        console.print(f"{counted_kinds(survey.numbers)}: not examined, because they do not state their leads and rate")
    if survey.unread:
        console.print(f"{counted_kinds(survey.unread)}: of formats that are not read; {EXPORT}", soft_wrap=True)
    odd = sum(record.odd for record in survey.records)
    console.print(f"{len(survey.records):,} records: {survey.bad:,} bad, {odd:,} odd", soft_wrap=True)


def survey_to_json(survey: Survey) -> dict[str, Any]:
    """Return the whole survey: folder, databases, classes by year, codes, and every record with its findings."""
    return {
        "folder": str(survey.folder),
        "unfinished": survey.unfinished,
        "not_listed": list(survey.not_listed),
        "not_examined": [path.relative_to(survey.folder).as_posix() for path in survey.numbers],
        "unread": [path.relative_to(survey.folder).as_posix() for path in survey.unread],
        "databases": {name: _statistics(records) for name, records in _by_database(survey).items()},
        "classes": {
            str(year): {name: dict(counts) for name, counts in _class_counts(survey, year).items()}
            for year in get_args(Year)
        },
        "codes": dict(Counter(code for record in survey.records for code in record.codes).most_common()),
        "records": [
            {
                "record": record.path,
                "database": record.database,
                "bad": record.bad,
                "findings": [
                    {"reason": str(finding.reason), "bad": finding.reason.bad, "detail": finding.detail}
                    for finding in record.findings
                ],
            }
            for record in survey.records
        ],
    }


def _database_table(survey: Survey) -> Table:
    table = Table(title=f"Records in {survey.folder}", title_justify="left")
    table.add_column("folder", overflow="fold")
    for column in ("records", "bad", "odd", "hours", "Hz", "seconds (median)", "leads", "no age", "no sex"):
        table.add_column(column, justify="right")
    for name, records in _by_folder(survey).items():
        row = _statistics(records)
        seconds = "-"
        if row["seconds"]:
            low, median, high = row["seconds"]
            seconds = f"{low:g}" if low == high else f"{low:.4g} to {high:.4g} ({median:.3g})"
        cells = [row["records"], row["bad"], row["odd"], f"{row['hours']:.1f}"]
        cells += [_format_list(row["rates"]), seconds, _format_list(row["leads"])]
        implausible = f" + {row['age_implausible']} implausible" if row["age_implausible"] else ""
        table.add_row(printable(name), *map(str, cells), f"{row['age_missing']}{implausible}", str(row["sex_missing"]))
    return table


def _statistics(records: Sequence[RecordReport]) -> dict[str, Any]:
    """Return the statistics of a database. Header fields are counted over the records with a readable header."""
    readable = [record for record in records if record.rate]
    seconds = [record.samples / record.rate for record in readable]
    return {
        "records": len(records),
        "bad": sum(record.bad for record in records),
        "odd": sum(record.odd for record in records),
        "hours": sum(seconds) / 3600,
        "rates": sorted({record.rate for record in readable}),
        # minimum, median and maximum
        "seconds": [float(percentile) for percentile in np.percentile(seconds, (0, 50, 100))] if seconds else [],
        "leads": sorted({len(record.leads) for record in readable}),
        "age_missing": sum(record.age is None and not record.implausible_age for record in readable),
        "age_implausible": sum(record.implausible_age for record in readable),
        "sex_missing": sum(record.sex is None for record in readable),
    }


def _class_counts(survey: Survey, year: Year) -> dict[str, Counter[str]]:
    """Return class -> database -> the number of records with that class that are not bad."""
    classes = scored_classes(year)
    counts: dict[str, Counter[str]] = {name: Counter() for name in classes.names}
    for record in survey.records:
        if not record.bad:
            # A set of columns: two equivalent codes are one class of the record.
            for column in {classes.columns[code] for code in record.codes if code in classes.columns}:
                counts[classes.names[column]][record.database] += 1
    return counts


def _records_with(survey: Survey, reason: Reason) -> list[tuple[str, str]]:
    """Return path and detail of the records with a finding of this kind."""
    return [
        (record.path, finding.detail)
        for record in survey.records
        for finding in record.findings
        if finding.reason == reason
    ]


def _by_database(survey: Survey) -> dict[str, list[RecordReport]]:
    databases: dict[str, list[RecordReport]] = {}
    for record in sorted(survey.records, key=lambda record: record.database):
        databases.setdefault(record.database, []).append(record)
    return databases


def _by_folder(survey: Survey) -> dict[str, list[RecordReport]]:
    """Return the records of each folder, or of the folders above if they are many, such as one for each patient."""
    databases = _by_database(survey)
    paths = {name: name.split("/") for name in databases}
    depth = max(map(len, paths.values()), default=0)
    while depth > 0 and len({tuple(path[:depth]) for path in paths.values()}) > MAX_FOLDERS:
        depth -= 1
    folders: dict[str, list[RecordReport]] = {}
    for name, records in databases.items():
        parts = paths[name]
        folders.setdefault("/".join([*parts[:depth], *(["..."] if len(parts) > depth else [])]), []).extend(records)
    return folders


def _format_list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "-"
