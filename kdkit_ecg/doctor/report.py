"""Tell what a survey found: tables for people, JSON for machines."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from kdkit_ecg.doctor.findings import Reason, RecordReport
from kdkit_ecg.doctor.survey import Survey
from kdkit_ecg.labels import Year, scored_classes

FIRST = 3  # names that a summary gives for each reason


def show(found: Survey, console: Console, *, all_names: bool) -> None:
    """Write databases, classes, and every reason with its first records, or with all of them and the details."""
    console.print(_databases(found))
    for year in get_args(Year):
        console.print(_classes(found, year))
    for title, bad in (("Bad", True), ("Odd", False)):
        reasons = [each for each in Reason if each.bad == bad and _having(found, each)]
        if reasons:
            console.print(f"{title}:")
        for reason in reasons:
            for line in _reason(found, reason, all_names=all_names):
                console.print(line, soft_wrap=True)
    if found.unfinished:
        console.print(f"{found.unfinished} unfinished .part files: run kdkit ecg fetch again to go on with them")
    odd = sum(bool(each.findings) and not each.bad for each in found.records)
    console.print(f"{len(found.records):,} records: {found.bad:,} bad, {odd:,} odd", soft_wrap=True)


def as_json(found: Survey) -> dict[str, Any]:
    """Return all of it: folder, databases, classes by year, codes, and every record with its findings."""
    return {
        "folder": str(found.folder),
        "unfinished": found.unfinished,
        "databases": {name: _figures(records) for name, records in _by_database(found).items()},
        "classes": {
            str(year): {name: dict(counts) for name, counts in _counts(found, year).items()} for year in get_args(Year)
        },
        "codes": dict(Counter(code for each in found.records for code in each.codes).most_common()),
        "records": [
            {
                "record": each.path,
                "database": each.database,
                "bad": each.bad,
                "findings": [
                    {"reason": str(one.reason), "bad": one.reason.bad, "detail": one.detail} for one in each.findings
                ],
            }
            for each in found.records
        ],
    }


def _databases(found: Survey) -> Table:
    table = Table(title=f"Records in {found.folder}", title_justify="left")
    table.add_column("folder", overflow="fold")
    for column in ("records", "bad", "odd", "hours", "Hz", "seconds (median)", "leads", "no age", "no sex"):
        table.add_column(column, justify="right")
    for name, records in _by_database(found).items():
        row = _figures(records)
        trials = [row["records"], row["bad"], row["odd"], f"{row['hours']:.1f}"]
        trials += [_listed(row["rates"]), _range(row["seconds"]), _listed(row["leads"])]
        absurd = f" + {row['age_absurd']} absurd" if row["age_absurd"] else ""
        table.add_row(name, *map(str, trials), f"{row['age_missing']}{absurd}", str(row["sex_missing"]))
    return table


def _figures(records: Sequence[RecordReport]) -> dict[str, Any]:
    """Return the figures of a database; those of headers are of the records whose header can be read."""
    read = [each for each in records if each.rate]
    seconds = [each.samples / each.rate for each in read]
    return {
        "records": len(records),
        "bad": sum(each.bad for each in records),
        "odd": sum(bool(each.findings) and not each.bad for each in records),
        "hours": sum(seconds) / 3600,
        "rates": sorted({each.rate for each in read}),
        "seconds": [float(figure) for figure in np.percentile(seconds, (0, 50, 100))] if seconds else [],
        "leads": sorted({len(each.leads) for each in read}),
        "age_missing": sum(each.age is None and not each.absurd_age for each in read),
        "age_absurd": sum(each.absurd_age for each in read),
        "sex_missing": sum(each.sex is None for each in read),
    }


def _classes(found: Survey, year: Year) -> Table:
    table = Table(title=f"Classes of {year}, in records that are not bad", title_justify="left")
    table.add_column("class")
    table.add_column("records", justify="right")
    table.add_column("of which in", overflow="fold")
    for name, counts in _counts(found, year).items():
        where = ", ".join(f"{database} {count}" for database, count in counts.most_common())
        table.add_row(name, str(counts.total()), where)
    return table


def _counts(found: Survey, year: Year) -> dict[str, Counter[str]]:
    """Return by class how many records that are not bad have it, by database."""
    classes = scored_classes(year)
    counts: dict[str, Counter[str]] = {name: Counter() for name in classes.names}
    for each in found.records:
        if not each.bad:
            for column in {classes.columns[code] for code in each.codes if code in classes.columns}:
                counts[classes.names[column]][each.database] += 1
    return counts


def _reason(found: Survey, reason: Reason, *, all_names: bool) -> Iterator[str]:
    having = _having(found, reason)
    shown = having if all_names else having[:FIRST]
    details = [f"{path} ({detail})" if detail else path for path, detail in shown]
    if all_names:
        yield f"  {len(having):,} {reason}:"
        yield from (f"    {each}" for each in details)
    else:
        more = ", ..." if len(having) > FIRST else ""
        yield f"  {len(having):,} {reason}: {', '.join(details)}{more}"


def _having(found: Survey, reason: Reason) -> list[tuple[str, str]]:
    return [(each.path, one.detail) for each in found.records for one in each.findings if one.reason == reason]


def _by_database(found: Survey) -> dict[str, list[RecordReport]]:
    databases: dict[str, list[RecordReport]] = {}
    for each in sorted(found.records, key=lambda each: each.database):
        databases.setdefault(each.database, []).append(each)
    return databases


def _listed(figures: Sequence[float]) -> str:
    return ", ".join(f"{each:g}" for each in figures) or "-"


def _range(figures: Sequence[float]) -> str:
    if not figures:
        return "-"
    low, middle, high = figures
    return f"{low:g}" if low == high else f"{low:.4g} to {high:.4g} ({middle:.3g})"
