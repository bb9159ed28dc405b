"""`kdkit classes`: the figures of a finished run, class by class."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # for readers and type checkers only: these import torch or rich, which `kdkit --help` does without
    from rich.table import Table

    from kdkit.classtable import ClassRow


@click.command("classes")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--net", help="Only this net; every net that was scored if not given.")
@click.option("--resamples", type=click.IntRange(min=2), default=1000, show_default=True, help="Of each interval.")
def classes(folder: Path, net: str | None, resamples: int) -> None:
    """Show how the nets of the run in FOLDER do, class by class.

    Shown are the positives in each split, the threshold with the best F1 on the selection split, and precision, recall,
    F1, AUROC and AUPRC with intervals of 95 %. Classes without positives stand there too.
    """
    from kdkit.classtable import (  # these import torch, which --help does without
        class_table,
        nets_of_run,
        read_reported,
    )
    from kdkit.console import console_for_people

    console = console_for_people()
    for each in nets_of_run(folder) if net is None else (net,):
        reported = read_reported(folder, each)
        rows = class_table(reported, resamples=resamples)
        split = "select" if reported.test is None else "test"
        console.print(table_of(rows, f"{each}, on {split}"))
        if reported.test is None:
            console.print("note: there is no test split: thresholds were chosen on these very samples", style="yellow")
        lacking = ", ".join(row.name for row in rows if not row.figures)
        if lacking:
            console.print(f"note: no positives in {split}: {lacking}", style="yellow", markup=False, soft_wrap=True)


def table_of(rows: "tuple[ClassRow, ...]", title: str) -> "Table":
    """Return a line per class; thresholds are shown as probabilities."""
    from rich.markup import escape  # rich takes a while to import
    from rich.table import Table

    from kdkit.classtable import FIGURES

    table = Table(title=escape(title), title_justify="left")
    table.add_column("class")
    for heading in ("train", "select", "test", "threshold", *FIGURES):
        table.add_column(heading, justify="right")
    for row in rows:
        counts = ["-" if count is None else f"{count:,}" for count in row.positives.values()]
        table.add_row(escape(row.name), *counts, _threshold(row.threshold), *(_figure(row, each) for each in FIGURES))
    return table


def _threshold(logit: float | None) -> str:
    if logit is None:
        return "-"
    return "never" if logit == math.inf else f"{1 / (1 + math.exp(-max(-500.0, logit))):.3f}"


def _figure(row: "ClassRow", name: str) -> str:
    if name not in row.figures:
        return "-"
    low, high = row.intervals[name]
    return f"{row.figures[name]:.2f} ({low:.2f}-{high:.2f})"
