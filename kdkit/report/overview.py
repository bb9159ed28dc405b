"""The sections of a report about networks and runs, as values for the template."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any, TypeVar

from markupsafe import Markup

from kdkit.errors import KdkitError
from kdkit.report import analysis, formats
from kdkit.report.charts import Bar, difference_bar, interval_chart, reliability_chart
from kdkit.report.runs import ReportedRun, nets_by_role, terms_of, weight_of
from kdkit.report.verdict import Verdict, in_points
from kdkit.utils.read_json import mapping
from kdkit.utils.reprs import distinct_notes

T = TypeVar("T")
Values = dict[str, Any]

COLOUR_OF_ROLE = {"student": 0, "baseline": 4, "teacher": 5, "": 1}


def difference_charts(verdicts: Sequence[Verdict]) -> list[Markup]:
    """Return a chart of the differences of metrics in points, and one for each metric in another unit.

    A single verdict shows all metrics; several verdicts show the first metric of each.
    """
    # Each with whether it is in points, and its metric, because different units must not share an axis.
    bars: list[tuple[bool, str, Bar]] = []
    for verdict in verdicts:
        for row in verdict.differences[: None if len(verdicts) == 1 else 1]:
            points = in_points(verdict.runs, row)
            title = formats.metric_title(row.metric)
            name = title if len(verdicts) == 1 else f"{verdict.label}: {title}"
            if row.lower_is_better:
                name += " (lower is better)"
            bar = difference_bar(name, row.value, row.interval, row.verdict, points=points)
            bars.append((points, row.metric, bar))
    charts = []
    shares = [bar for points, _, bar in bars if points]
    if shares:
        title = "Differences with 95 % intervals, in points"
        charts.append(interval_chart(title, shares, axis="difference in points, 95 % interval"))
    for metric in dict.fromkeys(metric for points, metric, _ in bars if not points):
        others = [bar for points, name, bar in bars if not points and name == metric]
        charts.append(interval_chart(f"Difference of {metric}", others, axis="difference, 95 % interval"))
    return charts


def net_table(runs: Sequence[ReportedRun], verdicts: Sequence[Verdict]) -> Values:
    """Return the metrics of each net: a row per net for one run, or a column per run for several.

    Before the columns of runs, each verdict on several runs has a column with their mean.
    """
    groups = [verdict for verdict in verdicts if len(verdict.runs) > 1]
    names = dict.fromkeys(name for run in runs for net in run.nets for name in run.metrics.results[net])
    nets = dict.fromkeys(net for run in runs for net in nets_by_role(run))
    if len(runs) == 1:
        table = [
            {
                "net": net,
                "role": runs[0].role(net),
                "parameters": formats.count(runs[0].parameters(net)),
                "sort": runs[0].parameters(net) or "",
                "cells": [_metric_cell(runs[0], net, name) for name in names],
            }
            for net in nets
        ]
        columns = [formats.metric_title(name) for name in names]
    else:
        table = [
            {
                "net": net,
                "role": next(run.role(net) for run in runs if net in run.nets),
                "metric": formats.metric_title(name),
                "cells": [
                    *(_mean_cell(group.runs, net, name) for group in groups),
                    *(_metric_cell(run, net, name) for run in runs),
                ],
            }
            for name in names
            for net in nets
        ]
        columns = [*(group.label for group in groups), *(run.label for run in runs)]
    notes = (result.note for run in runs for results in run.metrics.results.values() for result in results.values())
    return {
        "columns": columns,
        "has_means": bool(groups),
        "rows": table,
        "notes": distinct_notes(notes),
        "splits": sorted({run.metrics.reported_on for run in runs}),
    }


def cell(value: float | None, interval: tuple[float, float] | None) -> Values:
    """Return the cell of a table: a value with its interval, and its sort key."""
    is_defined = value is not None and math.isfinite(value)
    return {
        "text": formats.plain(value),
        "detail": formats.bounds(interval) if is_defined else "",
        "sort": repr(value) if is_defined else "",
    }


def if_defined(function: Callable[..., T], *args: Any, **options: Any) -> T | None:
    """Return the result of a function of predictions; None if it is undefined for them."""
    try:
        return function(*args, **options)
    except (KdkitError, ValueError):  # for example, the predictions cannot be compared
        return None


def agreement_table(runs: Sequence[ReportedRun]) -> list[Values]:
    """Return a row for each pair of a student or a baseline and a teacher."""
    pairs = [
        (run, teacher, net)
        for run in runs
        for student in run.students
        for teacher in run.teachers_of(student)
        for net in (student, run.baselines.get(student))
        if net is not None
    ]
    table = []
    for run, teacher, net in pairs:
        first, second = run.split(teacher), run.split(net)
        agreement = None if first is None or second is None else if_defined(analysis.agreement, first, second)
        if agreement is None:
            continue
        # In this order, so that the two shares in which the nets differ are adjacent.
        shares = [
            ("both right", "both", agreement.both),
            (f"only {net} right", "second", agreement.second_only),
            (f"only {teacher} right", "first", agreement.first_only),
            ("both wrong", "neither", agreement.neither),
        ]
        table.append(
            {
                "run": run.label,
                "net": net,
                "role": run.role(net),
                "teacher": teacher,
                "equal": formats.percent(agreement.equal),
                "divergence": formats.plain(agreement.divergence),
                "correlation": formats.plain(agreement.correlation),
                "shares": [
                    {"name": name, "kind": kind, "width": f"{100 * share:.2f}", "text": formats.percent(share)}
                    for name, kind, share in shares
                    if share is not None and math.isfinite(share)
                ],
            }
        )
    return table


def calibration(runs: Sequence[ReportedRun]) -> list[Values]:
    """Return a reliability diagram for each net."""
    diagrams = []
    for run in runs:
        for net in nets_by_role(run):
            split = run.split(net)
            result = None if split is None else if_defined(analysis.reliability, split.test)
            if result is None:
                continue
            error, bins = result
            title = f"{net}, {run.label}" if len(runs) > 1 else net
            chart = reliability_chart(f"Reliability of {title}", bins, COLOUR_OF_ROLE[run.role(net)])
            diagrams.append({"title": title, "role": run.role(net), "error": formats.plain(error), "chart": chart})
    return diagrams


def setup(runs: Sequence[ReportedRun]) -> Values:
    """Return the environment of each run, its terms, its notices, and the recipes."""
    keys = (
        *("seed", "device", "precision", "threads", "processes", "deterministic"),
        *("data", "sampler", "teacher_cache", "platform"),
    )
    facts: list[tuple[str, list[str]]] = [
        ("folder", [str(run.folder) for run in runs]),
        ("recipe", [run.name for run in runs]),
        *((key.replace("_", " "), [_fact(run.record.get(key)) for run in runs]) for key in keys),
    ]
    for group in ("versions", "options"):
        for key in dict.fromkeys(key for run in runs for key in mapping(run.record, group)):
            title = f"--{key.replace('_', '-')}" if group == "options" else key
            facts.append((title, [_fact(mapping(run.record, group).get(key)) for run in runs]))
    terms: dict[tuple[tuple[str, str], ...], list[str]] = {}  # the labels of the runs with each term
    for run in runs:
        for stage, terms_of_stage in terms_of(run.record).items():
            for term in terms_of_stage:
                texts = {key: str(term.get(key) or "") for key in ("student_net", "label", "loss", "teacher")}
                row = {"stage": stage, **texts, "weight": weight_of(term)}
                labels = terms.setdefault(tuple(row.items()), [])
                labels += [] if run.label in labels else [run.label]
    # A recipe of several runs is shown once.
    sources: dict[str, list[str]] = {}
    for run in runs:
        if run.source is not None:
            sources.setdefault(run.source, []).append(run.label)
    return {
        "labels": [run.label for run in runs],
        "facts": [{"name": name, "values": values, "differs": len(set(values)) > 1} for name, values in facts],
        "commands": list(dict.fromkeys(filter(None, (run.command for run in runs)))),
        "terms": [
            {**dict(term), "runs": "all" if len(labels) == len(runs) else ", ".join(labels)}
            for term, labels in terms.items()
        ],
        "notices": list(dict.fromkeys(notice for run in runs for notice in run.notices)),
        "problems": list(dict.fromkeys(problem for run in runs for problem in run.problems)),
        "sources": [{"labels": labels, "text": text} for text, labels in sources.items()],
    }


def _fact(value: Any) -> str:
    if value is None:
        return formats.DASH
    text = str(value)
    # A fingerprint or an option may have any length.
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _metric_cell(run: ReportedRun, net: str, name: str) -> Values:
    result = run.metrics.results[net].get(name) if net in run.nets else None
    return cell(None, None) if result is None else cell(result.value, result.interval)


def _mean_cell(runs: Sequence[ReportedRun], net: str, name: str) -> Values:
    """Return the mean and the standard deviation over runs, undefined if it is for one of them."""
    results = [run.metrics.results[net].get(name) if net in run.nets else None for run in runs]
    values = [math.nan if result is None else result.value for result in results]
    if not all(map(math.isfinite, values)):
        return cell(None, None)
    return {**cell(fmean(values), None), "detail": f"± {formats.plain(stdev(values))}"}
