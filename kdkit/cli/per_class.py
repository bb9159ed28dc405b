"""The table of `kdkit classes`: the metrics of a finished run, class by class."""

import math

from rich.markup import escape
from rich.table import Table

from kdkit.metrics.per_class import FIGURES, ClassRow


def table_of(rows: tuple[ClassRow, ...], title: str) -> Table:
    """Return a table with a row for each class; thresholds are shown as probabilities."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("class")
    for heading in ("train", "validation", "test", "threshold", *FIGURES):
        table.add_column(heading, justify="right")
    for row in rows:
        counts = ["-" if count is None else f"{count:,}" for count in row.positives.values()]
        metrics = [
            "{:.2f} ({:.2f}-{:.2f})".format(row.figures[name], *row.intervals[name]) if name in row.figures else "-"
            for name in FIGURES
        ]
        table.add_row(escape(row.name), *counts, _probability(row.threshold), *metrics)
    return table


def _probability(logit: float | None) -> str:
    if logit is None:
        return "-"
    if logit == math.inf:  # the threshold of a class that is never predicted
        return "never"
    return f"{1 / (1 + math.exp(-max(-500.0, logit))):.3f}"  # exp(710) overflows a float
