"""The contents of a report, section by section, as values that the template shows."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup

from kdkit.engine.storage.reports import StageReport
from kdkit.errors import KdkitError
from kdkit.metrics.per_class import FIGURES, ClassRow, class_table
from kdkit.report import analysis, formats
from kdkit.report.charts import Bar, Series, interval_chart, line_chart, reliability_chart, scatter_chart
from kdkit.report.runs import ReportedRun, mapping, number, rows
from kdkit.report.verdict import Verdict

Values = dict[str, Any]

_COLOUR_OF_ROLE = {"student": 0, "baseline": 4, "teacher": 5, "": 1}
_ROLE_ORDER = ("student", "baseline", "teacher", "")
_MEASURED = {"epoch", "terms", "best", "seconds", "gradients", "peak_memory_bytes", "stopped_by"}
_LARGEST_MATRIX = 40  # classes whose confusion is shown as a matrix
_LARGEST_TABLE = 400  # classes that a table shows, those with the most positives first
_SPOTS = 800  # points of a scatter chart
_ENTRIES = 2_000_000  # samples times classes above which fewer resamples are drawn


def difference_charts(verdicts: Sequence[Verdict]) -> list[Markup]:
    """Return a chart of the differences of metrics in points, and one for each metric in another unit.

    Of one verdict all metrics; of several ones the first metric of each.
    """
    bars: list[tuple[bool, str, Bar]] = []
    for verdict in verdicts:
        for row in verdict.differences[: None if len(verdicts) == 1 else 1]:
            points = formats.is_share(row.value, *row.interval)
            scale = 100 if points else 1
            low, high = row.interval
            title = formats.metric_title(row.metric)
            name = title if len(verdicts) == 1 else f"{verdict.label}: {title}"
            if row.lower_is_better:
                name += " (lower is better)"
            text = formats.signed(row.value, points=points)
            span = f"{formats.signed(low, points=points)} to {formats.signed(high, points=points)}"
            bar = Bar(
                name=name,
                value=scale * row.value,
                interval=(scale * low, scale * high),
                text=f"{text} ({span})",
                tone=row.verdict if row.verdict in ("better", "worse") else "",
            )
            bars.append((points, row.metric, bar))
    charts = []
    in_points = [bar for points, _, bar in bars if points]
    if in_points:
        title = "Differences with 95 % intervals, in points"
        charts.append(interval_chart(title, in_points, axis="difference in points, 95 % interval"))
    for metric in dict.fromkeys(metric for points, metric, _ in bars if not points):
        others = [bar for points, name, bar in bars if not points and name == metric]
        charts.append(interval_chart(f"Difference of {metric}", others, axis="difference, 95 % interval"))
    return charts


def net_table(runs: Sequence[ReportedRun]) -> Values:
    """Return the metrics of each net: of one run in a row per net, of several runs with a column per run."""
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
                "cells": [_metric_cell(run, net, name) for run in runs],
            }
            for name in names
            for net in nets
        ]
        columns = [run.label for run in runs]
    notes = dict.fromkeys(
        result.note for run in runs for results in run.metrics.results.values() for result in results.values()
    )
    return {
        "columns": columns,
        "rows": table,
        "notes": [note for note in notes if note],
        "splits": sorted({run.metrics.reported_on for run in runs}),
    }


def nets_by_role(run: ReportedRun) -> list[str]:
    """Return the nets of a run: students, their baselines, their teachers, and the others."""
    return sorted(run.nets, key=lambda net: _ROLE_ORDER.index(run.role(net)))


def training(runs: Sequence[ReportedRun]) -> list[Values]:
    """Return the charts of each stage: the monitored metric, the terms, and gradients if they were recorded."""
    stages = []
    for name in dict.fromkeys(stage.name for run in runs for stage in run.stages):
        histories = [
            (index, run, stage) for index, run in enumerate(runs) for stage in run.stages if stage.name == name
        ]
        charts: list[Values] = []
        monitors = dict.fromkeys(
            key for _, _, stage in histories for entry in stage.epochs[:1] for key in entry if key not in _MEASURED
        )
        terms = dict.fromkeys(
            label for _, _, stage in histories for entry in stage.epochs[:1] for label in _object(entry.get("terms"))
        )
        for monitor in monitors:
            series = [_epochs(run, stage, index, (monitor,)) for index, run, stage in histories]
            title = f"Validation {formats.metric_title(monitor)}"
            charts.append(_chart(title, series))
        for label in terms:
            series = [_epochs(run, stage, index, ("terms", label)) for index, run, stage in histories]
            charts.append(_chart(label, series, note=_weight(histories[0][1], name, label)))
        charts += _gradient_charts(histories)
        ended = ""
        if len(runs) == 1:
            count, kept = len(histories[0][2].epochs), histories[0][2].best_epoch + 1
            ended = f"{count} epoch{'' if count == 1 else 's'}; epoch {kept} is kept."
        stages.append({"name": name, "ended": ended, "charts": charts})
    return stages


def agreement_table(runs: Sequence[ReportedRun]) -> list[Values]:
    """Return a row for each pair of a student or a baseline and a teacher."""
    table = []
    for run in runs:
        for student in run.students:
            followers = [student, *filter(None, [run.baselines.get(student)])]
            for teacher in run.teachers_of(student):
                for net in followers:
                    first, second = run.split(teacher), run.split(net)
                    pair = None if first is None or second is None else _agreement(first, second)
                    if pair is None:
                        continue
                    shares = [
                        ("both right", "both", pair.both),
                        (f"only {net} right", "second", pair.second_only),
                        (f"only {teacher} right", "first", pair.first_only),
                        ("both wrong", "neither", pair.neither),
                    ]
                    table.append(
                        {
                            "run": run.label,
                            "net": net,
                            "role": run.role(net),
                            "teacher": teacher,
                            "equal": formats.percent(pair.equal),
                            "divergence": formats.plain(pair.divergence),
                            "correlation": formats.plain(pair.correlation),
                            "shares": [
                                {"name": name, "kind": kind, "width": f"{100 * share:.2f}", "text": _percent(share)}
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
            result = None if split is None else _reliability(split.test)
            if result is None:
                continue
            error, bins = result
            title = f"{net}, {run.label}" if len(runs) > 1 else net
            chart = reliability_chart(f"Reliability of {title}", bins, _COLOUR_OF_ROLE[run.role(net)])
            diagrams.append({"title": title, "role": run.role(net), "error": formats.plain(error), "chart": chart})
    return diagrams


def class_tables(runs: Sequence[ReportedRun]) -> Values | None:
    """Return for each figure a table with a row per class and a column per net; None if no net has classes.

    The nets are those of the one run, or the student of each run.
    """
    columns: list[tuple[str, str, tuple[ClassRow, ...]]] = []
    for run in runs:
        nets = nets_by_role(run)[:4] if len(runs) == 1 else [run.student]
        for net in nets:
            table = _class_table(run, net)
            if table:
                columns.append((net if len(runs) == 1 else run.label, run.role(net), table))
    if not columns:
        return None
    by_name = [{row.name: row for row in table} for _, _, table in columns]
    split = "validation" if runs[0].metrics.reported_on == "validation" else "test"
    names = list(dict.fromkeys(name for table in by_name for name in table))
    positives = {
        name: next((table[name].positives.get(split) for table in by_name if name in table), None) for name in names
    }
    shown = (
        sorted(names, key=lambda name: -(positives[name] or 0))[:_LARGEST_TABLE]
        if len(names) > _LARGEST_TABLE
        else names
    )
    figures = []
    for figure in FIGURES:
        if not any(figure in row.figures for table in by_name for row in table.values()):
            continue
        lines = []
        for name in shown:
            cells = [_class_cell(table.get(name), figure) for table in by_name]
            lines.append({"name": name, "positives": positives[name], "cells": cells})
        figures.append({"name": figure, "title": formats.metric_title(figure), "rows": lines})
    return {
        "figures": figures,
        "columns": [{"title": title, "role": role} for title, role, _ in columns],
        "split": split,
        "hidden": len(names) - len(shown),
    }


def errors(runs: Sequence[ReportedRun]) -> list[Values]:
    """Return the confusion of classes of each student, or predicted over true numbers."""
    blocks = []
    for run in runs:
        for net in nets_by_role(run):
            is_shown = run.role(net) in ("student", "baseline") if len(runs) == 1 else net == run.student
            split = run.split(net)
            if split is None or not is_shown:
                continue
            title = net if len(runs) == 1 else run.label
            matrix = _confusion(split)
            if matrix is None:
                pairs = np.stack([split.test.labels.ravel(), split.test.outputs.ravel()], 1).astype(np.float64)
                step = max(1, len(pairs) // _SPOTS)
                points = [(float(true), float(predicted)) for true, predicted in pairs[::step]]
                chart = scatter_chart(f"Predicted over true values of {title}", points, _COLOUR_OF_ROLE[run.role(net)])
                blocks.append({"title": title, "role": run.role(net), "scatter": chart})
                continue
            kind = analysis.kind_of(split.test)
            several = kind == "multilabel" or split.test.outputs.dtype.kind == "b"
            blocks.append(
                {"title": title, "role": run.role(net), **_matrix(matrix, split.test.classes, several=several)}
            )
    return blocks


def cost(runs: Sequence[ReportedRun]) -> list[Values]:
    """Return a row for each net: its size, and the cost of its training."""
    table = []
    for run in runs:
        largest = max((run.parameters(net) or 0 for net in run.nets), default=0)
        for net in nets_by_role(run):
            stages = [stage for stage in run.stages if _trains(run, stage.name, net)]
            seconds = sum(_finite(entry.get("seconds")) for stage in stages for entry in stage.epochs)
            peaks = [entry.get("peak_memory_bytes") for stage in stages for entry in stage.epochs]
            peak = max((value for value in peaks if isinstance(value, int)), default=None)
            parameters = run.parameters(net)
            operations = number(mapping(mapping(run.record, "nets"), net), "multiply_adds")
            table.append(
                {
                    "run": run.label,
                    "net": net,
                    "role": run.role(net),
                    "parameters": formats.count(parameters),
                    "share": f"{100 * parameters / largest:.3g}" if parameters and largest else "",
                    "bytes": formats.size(run.weights_bytes(net)),
                    "operations": formats.count(operations),
                    "seconds": formats.duration(seconds) if stages else formats.DASH,
                    "epochs": sum(len(stage.epochs) for stage in stages) or formats.DASH,
                    "memory": formats.size(peak),
                }
            )
    return table


def setup(runs: Sequence[ReportedRun]) -> Values:
    """Return the environment of each run, its terms, its notices, and the recipes."""
    facts: list[tuple[str, list[str]]] = [
        ("folder", [str(run.folder) for run in runs]),
        ("recipe", [run.name for run in runs]),
        *((key, [_fact(run.record.get(key)) for run in runs]) for key in ("seed", "device", "precision", "threads")),
        ("processes", [_fact(run.record.get("processes")) for run in runs]),
        ("deterministic", [_fact(run.record.get("deterministic")) for run in runs]),
        ("data", [_fact(run.record.get("data")) for run in runs]),
        ("teacher cache", [_fact(run.record.get("teacher_cache")) for run in runs]),
        ("platform", [_fact(run.record.get("platform")) for run in runs]),
    ]
    for group in ("versions", "options"):
        for key in dict.fromkeys(key for run in runs for key in mapping(run.record, group)):
            title = f"--{key.replace('_', '-')}" if group == "options" else key
            facts.append((title, [_fact(mapping(run.record, group).get(key)) for run in runs]))
    sources: dict[str, list[str]] = {}
    for run in runs:
        if run.source is not None:
            sources.setdefault(run.source, []).append(run.label)
    return {
        "labels": [run.label for run in runs],
        "facts": [{"name": name, "values": values, "differs": len(set(values)) > 1} for name, values in facts],
        "commands": list(dict.fromkeys(filter(None, map(_command, runs)))),
        "terms": [
            {"run": run.label, "stage": stage, **term, "weight": _span(term.get("weight"))}
            for run in runs
            for stage in mapping(run.record, "terms")
            for term in rows(mapping(run.record, "terms"), stage)
        ],
        "notices": list(dict.fromkeys(notice for run in runs for notice in _notices(run))),
        "problems": list(dict.fromkeys(problem for run in runs for problem in run.problems)),
        "sources": [{"labels": labels, "text": text} for text, labels in sources.items()],
    }


def _metric_cell(run: ReportedRun, net: str, name: str) -> Values:
    result = run.metrics.results[net].get(name) if net in run.nets else None
    if result is None:
        return {"text": formats.DASH, "detail": "", "sort": ""}
    return {
        "text": formats.plain(result.value),
        "detail": formats.bounds(result.interval),
        "sort": _sortable(result.value),
    }


def _epochs(run: ReportedRun, stage: StageReport, index: int, keys: Sequence[str]) -> Series:
    """Return a value of each epoch, which these keys lead to, with the kept epoch marked."""
    points = [(float(epoch), _value_at(entry, keys)) for epoch, entry in enumerate(stage.epochs, start=1)]
    return Series(name=run.label, points=points, colour=index, marked=float(stage.best_epoch + 1))


def _value_at(entry: Any, keys: Sequence[str]) -> float:
    """Return the number that keys lead to, NaN if there is none."""
    for key in keys:
        entry = _object(entry).get(key)
    return _finite(entry, math.nan)


def _chart(title: str, series: Sequence[Series], note: str = "") -> Values:
    return {"title": title, "note": note, "svg": line_chart(title, series), "legend": []}


def _gradient_charts(histories: Sequence[tuple[int, ReportedRun, StageReport]]) -> Iterator[Values]:
    """Yield the norms of gradients and the cosines between them: of one run together, of several ones side by side."""
    for key, title, note in (
        ("norms", "Gradient norm", "of the weighted terms"),
        ("cosines", "Cosine of gradients", "below 0 the terms are in conflict"),
    ):
        recorded = [_object(entry.get("gradients")) for _, _, stage in histories for entry in stage.epochs]
        names = list(dict.fromkeys(name for gradients in recorded for name in _object(gradients.get(key))))
        limits = (-1.0, 1.0) if key == "cosines" else None
        if len(histories) == 1 and names:
            _, run, stage = histories[0]
            series = [
                replace(_epochs(run, stage, colour, ("gradients", key, name)), name=name, marked=None)
                for colour, name in enumerate(names)
            ]
            legend = [{"name": line.name, "colour": line.colour % 6} for line in series]
            yield {"title": title, "note": note, "svg": line_chart(title, series, bounds=limits), "legend": legend}
            continue
        for name in names:
            series = [_epochs(run, stage, index, ("gradients", key, name)) for index, run, stage in histories]
            full = f"{title}: {name}"
            yield {"title": full, "note": note, "svg": line_chart(full, series, bounds=limits), "legend": []}


def _agreement(first: Any, second: Any) -> analysis.Agreement | None:
    try:
        return analysis.agreement(first, second)
    except (KdkitError, ValueError):  # predictions of kinds that cannot be compared
        return None


def _reliability(test: Any) -> tuple[float, list[tuple[float, float, int]]] | None:
    try:
        return analysis.reliability(test)
    except (KdkitError, ValueError):
        return None


def _confusion(split: Any) -> Any:
    try:
        return analysis.confusion(split)
    except (KdkitError, ValueError):
        return None


def _class_table(run: ReportedRun, net: str) -> tuple[ClassRow, ...]:
    report = run.reports.get(net)
    if report is None or analysis.kind_of(report.validation) == "regression":
        return ()
    size = len(report.validation if report.test is None else report.test) * len(report.validation.classes)
    try:
        return class_table(report, resamples=1000 if size <= _ENTRIES else 200)
    except (KdkitError, ValueError):
        return ()


def _class_cell(row: ClassRow | None, figure: str) -> Values:
    value = None if row is None else row.figures.get(figure)
    return {
        "text": formats.plain(value),
        "detail": "" if row is None or value is None else formats.bounds(row.intervals.get(figure)),
        "sort": "" if value is None else _sortable(value),
        "width": "" if value is None or not math.isfinite(value) else f"{100 * min(1.0, max(0.0, value)):.1f}",
    }


def _matrix(matrix: Any, classes: Sequence[str], *, several: bool) -> Values:
    """Return the cells of a confusion matrix as shares of their row, and the largest confusions."""
    totals = matrix.sum(1) if not several else np.diag(matrix)
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:12]
    pairs = [divmod(int(index), len(classes)) for index in order]
    confusions = [
        {
            "true": classes[row],
            "predicted": classes[column],
            "count": f"{int(off[row, column]):,}",
            "share": formats.percent(off[row, column] / totals[row] if totals[row] else None),
        }
        for row, column in pairs
        if off[row, column] > 0
    ]
    cells = []
    most = max(1.0, float(off.max(initial=0)))
    if len(classes) <= _LARGEST_MATRIX:
        for row, name in enumerate(classes):
            shares = [matrix[row, column] / totals[row] if totals[row] else 0.0 for column in range(len(classes))]
            if several:  # by counts: of a single miss, each wrong class would have the largest share
                shares = [off[row, column] / most for column in range(len(classes))]
            cells.append(
                {
                    "name": name,
                    "total": f"{int(totals[row]):,}",
                    "cells": [
                        {
                            "count": f"{int(matrix[row, column]):,}" if matrix[row, column] else "",
                            "share": f"{share:.3f}",
                            "is_dark": share > 0.55 and not several,
                            "is_right": row == column,
                            "label": f"{name}, {classes[column]}: {int(matrix[row, column]):,}",
                        }
                        for column, share in enumerate(shares)
                    ],
                }
            )
    return {"several": several, "classes": list(classes), "matrix": cells, "confusions": confusions}


def _trains(run: ReportedRun, stage: str, net: str) -> bool:
    terms = rows(mapping(run.record, "terms"), stage)
    return any(term.get("student_net") == net for term in terms) if terms else stage == net


def _weight(run: ReportedRun, stage: str, label: str) -> str:
    for term in rows(mapping(run.record, "terms"), stage):
        if term.get("label") == label:
            return f"weight {_span(term.get('weight'))}"
    return ""


def _span(weight: Any) -> str:
    """Return the weight of a term, or those at the start and at the end of its stage."""
    if not isinstance(weight, list) or len(weight) != 2:
        return ""
    first, last = (f"{_finite(value):.3g}" for value in weight)
    return first if first == last else f"{first} to {last}"


def _command(run: ReportedRun) -> str:
    arguments = mapping(run.record, "command").get("arguments")
    return shlex.join(["kdkit", "run", *map(str, arguments)]) if isinstance(arguments, list) else ""


def _notices(run: ReportedRun) -> list[str]:
    notices = run.record.get("notices")
    return [str(notice) for notice in notices] if isinstance(notices, list) else []


def _fact(value: Any) -> str:
    if value is None:
        return formats.DASH
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _finite(value: Any, default: float = 0.0) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else default


def _sortable(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
