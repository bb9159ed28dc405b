"""The section of a report that compares the combinations of options of a sweep, from the results.json of the sweep."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdkit.errors import RunFolderError
from kdkit.metrics.base import is_share
from kdkit.report.charts import Bar, difference_bar, interval_chart
from kdkit.report.formats import DASH, metric_title, plain, signed, signed_bounds
from kdkit.report.runs import ReportedRun
from kdkit.utils.read_json import items, mapping, number_or, read_json, require_object, rows

Values = dict[str, Any]

_FILE = "results.json"


def combinations(folders: Sequence[Path], runs: Sequence[ReportedRun]) -> list[Values]:
    """Return the comparison of each folder with the results of a sweep over several combinations.

    Raises RunFolderError if a file of results cannot be read.
    """
    tables = []
    for folder in folders:
        path = folder / _FILE
        if not path.exists():
            continue
        try:
            results = require_object(read_json(path))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} cannot be read: {error}; run the sweep again, or delete the file") from error
        cells = rows(results, "cells")
        if len(cells) > 1:
            count = sum(run.folder.resolve().parent == folder.resolve() for run in runs)
            tables.append({"title": folder.name if len(folders) > 1 else "", **_table(results, cells, count)})
    return tables


def _table(results: Values, cells: Sequence[Values], count: int) -> Values:
    """Return the rows, the chart and the notes of a comparison. count: the number of runs in the folder."""
    metric, reference = str(results.get("metric")), str(results.get("reference") or "")
    unit = "run" if results.get("average_over") else "seed"
    labels = _labels(cells)
    best = ""
    values = [mapping(mapping(cell, "metrics"), metric) for cell in cells]
    means, lower = (number_or(of_cell.get("mean"), math.nan) for of_cell in values), results.get("lower_is_better")
    points = is_share(metric, *means, lower_is_better=lower is True)
    table, bars = [], []
    for cell, label, of_cell in zip(cells, labels, values, strict=True):
        is_best = cell.get("options") == results.get("best")
        best = label if is_best else best
        comparison = mapping(cell, "this_minus_reference" if reference else "best_minus_this")
        bar, differences = _difference(label, comparison, points=points)
        is_reference = {*reference.split(", ")} <= {*label.split(", ")}
        mean, deviation = (number_or(of_cell.get(name), math.nan) for name in ("mean", "sd"))
        table.append(
            {
                "name": label,
                "is_best": is_best,
                "count": len(items(cell, f"{unit}s")),
                "text": plain(mean),
                "detail": f"± {plain(deviation)}" if math.isfinite(deviation) else "",
                "sort": repr(mean) if math.isfinite(mean) else "",
                "differences": differences,
                "verdict": "the reference" if is_reference else comparison.get("verdict") or DASH,
            }
        )
        if comparison:
            bars.append(bar)
    compared = sum(len(items(cell, f"{unit}s")) for cell in cells)
    notes = [str(note) for note in items(results, "notes")]
    if count > compared:
        notes.append(
            f"the folder has {count} runs, of which the last sweep compared {compared}; "
            f"to compare all of them, run the sweep with all {unit}s again"
        )
    against = f" minus that of {reference}" if reference else f" of {best} minus that of the others"
    title = f"{metric_title(metric)}{against}"
    level = f"{100 * number_or(results.get('level'), math.nan):.4g} % interval"
    return {
        "metric": metric_title(metric),
        "net": results.get("net") or "",
        "split": results.get("reported_on"),
        "best": best,
        "difference": title,
        "verdict": f"{best} is" if best and not reference else "is",
        "unit": unit,
        "rows": table,
        "chart": interval_chart(title, bars, axis=f"difference{' in points' if points else ''}, {level}"),
        "notes": notes,
    }


def _difference(label: str, comparison: Values, *, points: bool) -> tuple[Bar, list[str]]:
    """Return a comparison as a bar, and as texts: its value, and its intervals over seeds, samples, and both."""
    parts = [mapping(comparison, name) for name in ("seeds", "samples")]
    value = next((number_or(part["value"], math.nan) for part in parts if "value" in part), math.nan)
    intervals = [_interval(part) for part in (*parts, comparison if all(parts) else {})]
    widest = next((interval for interval in reversed(intervals) if interval is not None), (math.nan, math.nan))
    bar = difference_bar(label, value, widest, comparison.get("verdict"), points=points)
    spans = [DASH if interval is None else signed_bounds(interval, points=points) for interval in intervals]
    return bar, [signed(value, points=points), *spans]


def _labels(cells: Sequence[Values]) -> list[str]:
    """Return the options of each combination that differ between combinations, such as "temperature=2, width=8"."""
    options = [mapping(cell, "options") for cell in cells]
    names = dict.fromkeys(name for of_cell in options for name in of_cell)
    varied = [name for name in names if len({repr(of_cell.get(name)) for of_cell in options}) > 1]
    return [", ".join(f"{name}={of_cell[name]}" for name in varied if name in of_cell) for of_cell in options]


def _interval(record: Values) -> tuple[float, float] | None:
    """Return the interval in a record; None if there is none."""
    bounds = [number_or(bound, math.nan) for bound in items(record, "interval")]
    return (bounds[0], bounds[1]) if len(bounds) == 2 and all(map(math.isfinite, bounds)) else None
