"""The sections of a report about classes: the metrics of each class, and which classes are confused."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdkit.metrics.per_class import FIGURES, ClassRow, NetReport, class_table, positives_of
from kdkit.report import analysis, formats
from kdkit.report.charts import scatter_chart
from kdkit.report.overview import COLOUR_OF_ROLE, cell, if_defined
from kdkit.report.runs import ReportedRun, nets_by_role

_LARGEST_MATRIX = 40  # classes whose confusion is shown as a matrix
_LARGEST_TABLE = 400  # classes in a table; those with the most positives are kept
_SPOTS = 800  # points of a scatter chart
_ENTRIES = 2_000_000  # samples times classes; above this, fewer resamples are drawn


def class_tables(runs: Sequence[ReportedRun]) -> dict[str, Any] | None:
    """Return a table for each metric, with a row per class and a column per net; None if no net has classes.

    The nets are all nets of a single run, or the student of each run.
    """
    reports: list[tuple[str, str, NetReport]] = []
    for run in runs:
        nets = nets_by_role(run)[:4] if len(runs) == 1 else [run.student]
        for net in nets:
            report = run.reports.get(net)
            if report is None or analysis.kind_of(report.validation) == "regression":
                continue
            reports.append((net if len(runs) == 1 else run.label, run.role(net), report))
    split = "validation" if runs[0].metrics.reported_on == "validation" else "test"
    # Nets may lack classes of the data, so columns are joined by name.
    positives: dict[str, int | None] = {}
    for _, _, report in reports:
        in_split = (if_defined(positives_of, report) or {}).get(split, {})
        for name in report.splits.test.classes:
            positives.setdefault(name, in_split.get(name))
    names = list(positives)
    if len(names) > _LARGEST_TABLE:  # a page with thousands of classes would open slowly
        names = sorted(names, key=lambda name: -(positives[name] or 0))[:_LARGEST_TABLE]
    columns: list[tuple[str, str, tuple[ClassRow, ...]]] = []
    for title, role, report in reports:
        resamples = 1000 if len(report.splits.test) * len(names) <= _ENTRIES else 200
        table_of_net = if_defined(class_table, report, resamples=resamples, classes=frozenset(names))
        if table_of_net:
            columns.append((title, role, table_of_net))
    if not columns:
        return None
    by_name = [{row.name: row for row in table} for _, _, table in columns]
    figures = []
    for figure in FIGURES:
        if not any(figure in row.figures for table in by_name for row in table.values()):
            continue
        lines = []
        for name in names:
            cells = []
            for table in by_name:
                row = table.get(name)
                value = None if row is None else row.figures.get(figure)
                share = None if value is None or not math.isfinite(value) else min(1.0, max(0.0, value))
                interval = None if row is None else row.intervals.get(figure)
                cells.append({**cell(value, interval), "width": "" if share is None else f"{100 * share:.1f}"})
            lines.append({"name": name, "positives": positives[name], "cells": cells})
        figures.append({"name": figure, "title": formats.metric_title(figure), "rows": lines})
    return {
        "figures": figures,
        "columns": [{"title": title, "role": role} for title, role, _ in columns],
        "split": split,
        "hidden": len(positives) - len(names),
    }


def errors(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Return the confusion matrix of each student, or predicted over true numbers."""
    blocks = []
    for run in runs:
        for net in nets_by_role(run):
            is_shown = run.role(net) in ("student", "baseline") if len(runs) == 1 else net == run.student
            split = run.split(net)
            if split is None or not is_shown:
                continue
            title = net if len(runs) == 1 else run.label
            matrix = if_defined(analysis.confusion, split)
            if matrix is None:
                if split.test.labels.size != split.test.outputs.size:  # such as embeddings, with similarities as labels
                    continue
                pairs = np.stack([split.test.labels.ravel(), split.test.outputs.ravel()], 1).astype(np.float64)
                # every n-th pair, so that each report of a run shows the same points
                step = max(1, len(pairs) // _SPOTS)
                points = [(float(true), float(predicted)) for true, predicted in pairs[::step]]
                chart = scatter_chart(f"Predicted over true values of {title}", points, COLOUR_OF_ROLE[run.role(net)])
                blocks.append({"title": title, "role": run.role(net), "scatter": chart})
                continue
            kind = analysis.kind_of(split.test)
            several = kind == "multilabel" or split.test.outputs.dtype.kind == "b"
            unit = "positions" if kind == "positions" and not several else "samples"
            cells = _matrix(matrix, split.test.classes, several=several)
            blocks.append({"title": title, "role": run.role(net), "unit": unit, **cells})
    return blocks


def _matrix(counted: Any, classes: Sequence[str], *, several: bool) -> dict[str, Any]:
    """Return the cells of a confusion matrix, a csr_array, as shares of their row, and the largest confusions."""
    totals = counted.sum(1) if not several else counted.diagonal()
    entries = counted.tocoo()
    rows, columns, counts = entries.row, entries.col, entries.data
    # The diagonal has correct predictions, or all misses.
    is_off = rows != columns
    rows, columns, counts = rows[is_off], columns[is_off], counts[is_off]
    order = np.lexsort((columns, rows, -counts))[:12]
    confusions = [
        {
            "true": classes[row],
            "predicted": classes[column],
            "count": f"{int(number):,}",
            "share": formats.percent(number / totals[row] if totals[row] else None),
        }
        for row, column, number in zip(*(values[order].tolist() for values in (rows, columns, counts)), strict=True)
    ]
    cells = []
    most = max(1.0, float(counts.max(initial=0)))
    if len(classes) <= _LARGEST_MATRIX:
        matrix = counted.toarray()
        for row, name in enumerate(classes):
            shares = [matrix[row, column] / totals[row] if totals[row] else 0.0 for column in range(len(classes))]
            if several:  # by counts, because with a single miss each wrong class would have the largest share
                shares = [matrix[row, column] / most if column != row else 0.0 for column in range(len(classes))]
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
