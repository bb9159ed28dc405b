"""`kdkit classes`: the figures of a finished run, class by class."""

import math

from rich.markup import escape
from rich.table import Table

from kdkit.metrics.per_class import FIGURES, ClassRow


def table_of(rows: tuple[ClassRow, ...], title: str) -> Table:
    """Return a line per class; thresholds are shown as probabilities."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("class")
    for heading in ("train", "validation", "test", "threshold", *FIGURES):
        table.add_column(heading, justify="right")
    for row in rows:
        counts = ["-" if count is None else f"{count:,}" for count in row.positives.values()]
        table.add_row(escape(row.name), *counts, _threshold(row.threshold), *(_figure(row, each) for each in FIGURES))
    return table


def _threshold(logit: float | None) -> str:
    if logit is None:
        return "-"
    return "never" if logit == math.inf else f"{1 / (1 + math.exp(-max(-500.0, logit))):.3f}"


def _figure(row: ClassRow, name: str) -> str:
    if name not in row.figures:
        return "-"
    low, high = row.intervals[name]
    return f"{row.figures[name]:.2f} ({low:.2f}-{high:.2f})"
