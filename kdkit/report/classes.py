"""The sections of a report about classes: the metrics of each class, and which classes are confused."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdkit.metrics.base import Predictions
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
    reports: list[tuple[str, str, NetReport]] = []  # each with its title and its role
    for run in runs:
        for net in nets_by_role(run)[:4] if len(runs) == 1 else [run.student]:
            report = run.reports.get(net)
            if report is not None and analysis.kind_of(report.validation) != "regression":
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
    columns: list[tuple[str, str, dict[str, ClassRow]]] = []
    for title, role, report in reports:
        resamples = 1000 if len(report.splits.test) * len(names) <= _ENTRIES else 200
        table = if_defined(class_table, report, resamples=resamples, classes=frozenset(names))
        if table:
            columns.append((title, role, {row.name: row for row in table}))
    if not columns:
        return None
    figures = [
        {
            "name": figure,
            "title": formats.metric_title(figure),
            "rows": [
                {
                    "name": name,
                    "positives": positives[name],
                    "cells": [_class_cell(by_name.get(name), figure) for _, _, by_name in columns],
                }
                for name in names
            ],
        }
        for figure in FIGURES
        if any(figure in row.figures for _, _, by_name in columns for row in by_name.values())
    ]
    return {
        "figures": figures,
        "columns": [{"title": title, "role": role} for title, role, _ in columns],
        "split": split,
        "hidden": len(positives) - len(names),
    }


def _class_cell(row: ClassRow | None, figure: str) -> dict[str, Any]:
    """Return a figure of a class with the width of its bar; an empty cell if the net lacks the class."""
    value = None if row is None else row.figures.get(figure)
    interval = None if row is None else row.intervals.get(figure)
    width = "" if value is None or not math.isfinite(value) else f"{100 * min(1.0, max(0.0, value)):.1f}"
    return {**cell(value, interval), "width": width}


def errors(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Return the confusion matrix of each student, or predicted over true numbers."""
    blocks = []
    for run in runs:
        for net in nets_by_role(run):
            role, split = run.role(net), run.split(net)
            is_shown = role in ("student", "baseline") if len(runs) == 1 else net == run.student
            if split is None or not is_shown:
                continue
            block = {"title": net if len(runs) == 1 else run.label, "role": role}
            matrix = if_defined(analysis.confusion, split)
            if matrix is not None:
                blocks.append({**block, **_confusions(matrix, split.test)})
            elif split.test.labels.size == split.test.outputs.size:  # unlike embeddings, with similarities as labels
                pairs = np.stack([split.test.labels.ravel(), split.test.outputs.ravel()], 1).astype(np.float64)
                # every n-th pair, so that each report of a run shows the same points
                points = pairs[:: max(1, len(pairs) // _SPOTS)].tolist()
                title = f"Predicted over true values of {block['title']}"
                blocks.append({**block, "scatter": scatter_chart(title, points, COLOUR_OF_ROLE[role])})
    return blocks


def _confusions(counted: Any, test: Predictions) -> dict[str, Any]:
    """Return a confusion matrix, a csr_array, as cells with shares of their row, and the largest confusions."""
    classes, kind = test.classes, analysis.kind_of(test)
    several = kind == "multilabel" or test.outputs.dtype.kind == "b"  # labels per sample
    totals = counted.diagonal() if several else counted.sum(1)
    entries = counted.tocoo()
    # The diagonal has correct predictions, or all misses.
    is_off = entries.row != entries.col
    rows, columns, counts = entries.row[is_off], entries.col[is_off], entries.data[is_off]
    largest = np.lexsort((columns, rows, -counts))[:12]
    confusions = [
        {
            "true": classes[row],
            "predicted": classes[column],
            "count": f"{int(number):,}",
            "share": formats.percent(number / totals[row]),
        }
        for row, column, number in zip(rows[largest], columns[largest], counts[largest], strict=True)
    ]
    cells = []
    if len(classes) <= _LARGEST_MATRIX:
        matrix = counted.toarray()
        shares = matrix / np.maximum(totals, 1)[:, None]
        if several:  # by counts, because with a single miss each wrong class would have the largest share
            shares = matrix / max(1.0, counts.max(initial=0))
            np.fill_diagonal(shares, 0)
        cells = [
            {
                "name": name,
                "total": f"{int(totals[row]):,}",
                "cells": [
                    {
                        "count": f"{int(count):,}" if count else "",
                        "share": f"{share:.3f}",
                        "is_dark": share > 0.55 and not several,
                        "is_right": row == column,
                        "label": f"{name}, {classes[column]}: {int(count):,}",
                    }
                    for column, (count, share) in enumerate(zip(matrix[row], shares[row], strict=True))
                ],
            }
            for row, name in enumerate(classes)
        ]
    return {
        "unit": "positions" if kind == "positions" and not several else "samples",
        "several": several,
        "classes": list(classes),
        "matrix": cells,
        "confusions": confusions,
    }
