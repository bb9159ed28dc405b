"""Print the results of a sweep, or of several seeds, as a table."""

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from kdkit.engine.console import format_number
from kdkit.metrics.paired import Difference
from kdkit.report.runs import ReportedRun
from kdkit.study.sweep_results import SweepResults, spread


def sweep_table(results: SweepResults) -> Table:
    """Return a table with a row for each combination of options; a star marks the best on the validation split."""
    most = max(len(cell.seeds) for cell in results.cells)
    over = f"mean ± standard deviation over {most} seeds" if most > 1 else "one seed"
    table = Table(title=f"Metrics on {results.reported_on}, {over}", title_justify="left")
    table.add_column("options")
    metrics = list(dict.fromkeys(name for cell in results.cells for name in cell.metrics))
    is_chosen_apart = results.reported_on == "test"  # otherwise the column would repeat that of the metric
    validation = [f"validation {results.metric}"] if is_chosen_apart else []
    for name in ("seeds", *validation, *metrics):
        table.add_column(escape(name), justify="right")
    for index, cell in enumerate(results.cells):
        spreads = [spread(cell.validation.values())] if is_chosen_apart else []
        spreads += [cell.spread(name) for name in metrics]
        star = " *" if index == results.best and len(results.cells) > 1 else ""
        texts = [format_number(mean) + ("" if math.isnan(sd) else f" ± {format_number(sd)}") for mean, sd in spreads]
        table.add_row(escape(cell.label) + star, str(len(cell.seeds)), *texts)
    return table


def comparison_table(results: SweepResults) -> Table:
    """Return a table with a row for each comparison of the best cell with another one: differences, and the verdict."""
    best = results.cells[results.best].label
    level = f"{100 * results.level:.4g} % interval"
    table = Table(title=escape(f"{results.metric} of {best} minus that of others ({level})"), title_justify="left")
    table.add_column("options")
    for unit in ("over seeds", "over samples"):
        table.add_column(unit, justify="right")
    table.add_column(escape(f"{best} is"))
    for cell in results.cells:
        if cell.comparison is not None:
            differences = (cell.comparison.seeds, cell.comparison.samples)
            table.add_row(escape(cell.label), *map(_difference_text, differences), cell.comparison.verdict)
    return table


def seeds_table(runs: Sequence[ReportedRun]) -> Table:
    """Return a table of the mean and the standard deviation of each metric of each net over the runs."""
    over = f"mean ± standard deviation over {len(runs)} seeds" if len(runs) > 1 else "one seed"
    table = Table(title=f"Metrics on {runs[0].metrics.reported_on}, {over}", title_justify="left")
    table.add_column("net")
    metrics = dict.fromkeys(name for run in runs for results in run.metrics.results.values() for name in results)
    for name in metrics:
        table.add_column(escape(name), justify="right")
    for net in dict.fromkeys(net for run in runs for net in run.nets):
        results = [run.metrics.results[net] for run in runs if net in run.nets]
        spreads = [spread(result[name].value for result in results if name in result) for name in metrics]
        texts = [format_number(mean) + ("" if math.isnan(sd) else f" ± {format_number(sd)}") for mean, sd in spreads]
        table.add_row(escape(net), *texts)
    return table


def _difference_text(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    low, high = difference.interval
    return f"{difference.value:+.4f} ({low:+.4f} to {high:+.4f})"
