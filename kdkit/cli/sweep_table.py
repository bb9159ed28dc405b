"""Print the results of a sweep, or of several seeds, as tables."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from kdkit.errors import KdkitError
from kdkit.metrics.comparison import Comparison
from kdkit.report.runs import ReportedRun
from kdkit.study.sweep_results import SweepResults, spread
from kdkit.utils.console import make_console, print_note


def print_and_save(results: SweepResults, folder: Path) -> list[str]:
    """Print and save the results of a sweep, and return the reasons for what is missing in them or not saved."""
    console = make_console()
    console.print()
    console.print(sweep_table(results))
    if any(cell.comparison is not None for cell in results.cells):
        console.print(comparison_table(results))
    if any(cell.distillation is not None for cell in results.cells):
        console.print(distillation_table(results))
    for note in results.notes():
        print_note(console, note)
    failures = [*results.left_out]
    try:
        results.save(folder)
    except KdkitError as error:  # for example, the disk is full; other failures may have the same cause
        failures.append(str(error))
    else:
        console.print(f"saved to {folder}", markup=False, soft_wrap=True)
    return failures


def sweep_table(results: SweepResults) -> Table:
    """Return a table with a row for each combination of options; a star marks the best on the validation split."""
    most, unit = max(len(cell.repetitions) for cell in results.cells), results.unit
    over = f"mean ± standard deviation over {most} {unit}s" if most > 1 else f"one {unit}"
    has_star = len(results.cells) > 1 and results.best is not None
    legend = ", * best on validation" if has_star else ""
    title = f"Metrics{results.of_net} on {results.reported_on}, {over}{legend}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("options", overflow="fold")
    metrics = list(dict.fromkeys(name for cell in results.cells for name in cell.metrics))
    is_chosen_apart = results.reported_on == "test"  # otherwise the column would repeat the metric
    validation = [f"validation {results.metric}"] if is_chosen_apart else []
    for name in (f"{unit}s", *validation, *metrics):
        table.add_column(escape(name), justify="right", overflow="fold")
    for index, cell in enumerate(results.cells):
        spreads = [spread(cell.validation.values())] if is_chosen_apart else []
        spreads += [cell.spread(name) for name in metrics]
        star = " *" if index == results.best and has_star else ""
        table.add_row(escape(cell.label) + star, str(len(cell.repetitions)), *map(str, spreads))
    return table


def comparison_table(results: SweepResults) -> Table:
    """Return a table with a row for each comparison of cells: differences, and the verdict.

    The best cell is compared with the others, or if there is a reference, the others with the reference.
    """
    compared = {cell.label: cell.comparison for cell in results.cells if cell.comparison is not None}
    title, verdict = f"{results.metric} minus that of {results.reference}", "is"
    if not results.reference:
        best = "" if results.best is None else results.cells[results.best].label
        title, verdict = f"{results.metric} of {best} minus that of others", f"{best} is"
    table = _table(title, results.level, verdict, compared, unit=results.unit)
    for label, comparison in compared.items():
        table.add_row(escape(label), *_differences(comparison), comparison.verdict)
    return table


def distillation_table(results: SweepResults) -> Table:
    """Return a table with a row for each cell: the student with and without teachers, and the verdict."""
    compared = {cell.label: cell.distillation for cell in results.cells if cell.distillation is not None}
    title = f"{results.metric} minus that of the same student alone"
    table = _table(title, results.distillation_level, "distilled is", compared, "alone", unit=results.unit)
    for cell in results.cells:
        if cell.distillation is not None:
            alone = spread(cell.alone.get(results.metric, {}).values())
            table.add_row(escape(cell.label), str(alone), *_differences(cell.distillation), cell.distillation.verdict)
    return table


def _table(
    title: str, level: float, verdict: str, compared: Mapping[str, Comparison], *columns: str, unit: str
) -> Table:
    """Return a table of comparisons without rows."""
    table = Table(title=escape(f"{title} ({100 * level:.4g} % interval)"), title_justify="left")
    table.add_column("options", overflow="fold")
    for column in (*columns, "difference", f"over {unit}s", "over samples", "over both"):
        table.add_column(column, justify="right", overflow="fold")
    has_one_run = all(comparison.seeds is None for comparison in compared.values())
    table.add_column(escape(f"{verdict}{', in this run' if has_one_run else ''}"), min_width=15)  # "distinguishable"
    return table


def seeds_table(runs: Sequence[ReportedRun]) -> Table:
    """Return a table of the mean and the standard deviation of each metric of each net over the runs."""
    over = f"mean ± standard deviation over {len(runs)} seeds" if len(runs) > 1 else "one seed"
    table = Table(title=f"Metrics on {runs[0].metrics.reported_on}, {over}", title_justify="left")
    table.add_column("net", overflow="fold")
    metrics = dict.fromkeys(name for run in runs for results in run.metrics.results.values() for name in results)
    for name in metrics:
        table.add_column(escape(name), justify="right", overflow="fold")
    for net in dict.fromkeys(net for run in runs for net in run.nets):
        results = [run.metrics.results[net] for run in runs if net in run.nets]
        spreads = [spread(result[name].value for result in results if name in result) for name in metrics]
        table.add_row(escape(net), *map(str, spreads))
    return table


def _differences(comparison: Comparison) -> list[str]:
    """Return the difference, and its intervals over seeds, over samples, and over both."""
    total = comparison.total
    has_both = comparison.seeds is not None and comparison.samples is not None
    parts = (comparison.seeds, comparison.samples, total if has_both else None)
    intervals = [
        "-" if part is None or math.isnan(sum(part.interval)) else "{:+.4f} to {:+.4f}".format(*part.interval)
        for part in parts
    ]
    return ["-" if total is None else f"{total.value:+.4f}", *intervals]
