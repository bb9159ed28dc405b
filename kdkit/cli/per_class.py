"""The table of `kdkit classes`: the metrics of a finished run, class by class."""

import math

from rich import box
from rich.markup import escape
from rich.table import Table

from kdkit.metrics.per_class import FIGURES, ClassRow

_WIDE = 150  # columns in which an interval fits next to its value
_NARROW = 120  # columns below which headings and numbers are shortened


def table_of(rows: tuple[ClassRow, ...], title: str, width: int) -> Table:
    """Return a table of at most this width with a row for each class; thresholds are shown as probabilities.

    Only class names are wrapped, because part of a number would be another number.
    """
    is_narrow = width < _NARROW
    table = Table(title=escape(title), title_justify="left", box=None if is_narrow else box.HEAVY_HEAD)
    table.padding = (0, 1, 0, 0) if is_narrow else (0, 1)
    table.pad_edge = not is_narrow
    table.add_column("class", overflow="fold")
    splits = ("train", "valid", "test", "thr.") if is_narrow else ("train", "validation", "test", "threshold")
    figures = [name for name in FIGURES if any(name in row.figures for row in rows)]
    for heading in (*splits, *figures):
        short = {"precision": "prec.", "specificity": "spec."}.get(heading, heading)
        table.add_column(short if is_narrow else heading, justify="right", no_wrap=True)
    for row in rows:
        counts = ["-" if count is None else f"{count:,}" for count in row.positives.values()]
        metrics = [_figure(row, name, width) if name in row.figures else "-" for name in figures]
        table.add_row(escape(row.name), *counts, _probability(row.threshold), *metrics)
    return table


def _figure(row: ClassRow, name: str, width: int) -> str:
    """Return a value with its interval, which is on the next line if the table is narrow."""
    value, (low, high) = f"{row.figures[name]:.2f}", row.intervals[name]
    if not math.isfinite(low + high):
        return value
    if width >= _WIDE:
        return f"{value} ({low:.2f}-{high:.2f})"
    interval = f"{low:.2f}-{high:.2f}"
    return f"{value}\n{interval.replace('0.', '.') if width < _NARROW else interval}"


def _probability(logit: float | None) -> str:
    if logit is None:
        return "-"
    if logit == math.inf:  # the threshold of a class that is never predicted
        return "never"
    return f"{1 / (1 + math.exp(-max(-500.0, logit))):.3f}"  # exp(710) overflows a float
