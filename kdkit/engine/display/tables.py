"""Tables of metrics, and the difference of a student from its baseline in words."""

import math
from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from kdkit.metrics.base import is_share
from kdkit.plugins.events import BaselineDifference, ReportedMetric, RunEnded
from kdkit.utils.console import format_number


def metrics_table(event: RunEnded) -> Table:
    """Return a table with a row for each net: its parameters and its metrics."""
    table = Table(title=f"Metrics on {event.reported_on} ({event.seconds:.0f} s in all)", title_justify="left")
    table.add_column("net", overflow="fold")
    table.add_column("parameters", justify="right")
    # Nets may have different metrics; the dict keeps the order of their first occurrence.
    names = list(dict.fromkeys(name for results in event.metrics.values() for name in results))
    for name in names:
        table.add_column(escape(name), justify="right", overflow="fold")
    for net, results in event.metrics.items():
        values = [_with_interval(results[name]) if name in results else "-" for name in names]
        table.add_row(escape(net), f"{event.parameters[net]:,}", *values)
    return table


def describe_difference(difference: BaselineDifference, metrics: Mapping[str, Mapping[str, ReportedMetric]]) -> str:
    """Return a difference in words: "macro_f1 0.812 against 0.794 alone, +1.8 points (95 % interval +0.3 to +3.1)".

    It compares the two nets of one run: shares in points of 0.01, other metrics in their own unit.
    """
    value, alone = (metrics[net][difference.metric].value for net in (difference.student, difference.baseline))
    lower = difference.lower_is_better
    in_points = is_share(difference.metric, value, alone, difference.value, lower_is_better=lower)
    scale, unit, digits = (100, " points", ".3f") if in_points else (1, "", ".4g")
    change, low, high = (
        f"{scale * number:+.2g}" if abs(scale * number) < 1 else f"{scale * number:+.1f}"
        for number in (difference.value, *difference.interval)
    )
    has_interval = all(map(math.isfinite, difference.interval))
    interval = f"{difference.level:.0%} interval {low} to {high}" if has_interval else "no interval"
    return (
        f"{difference.metric} {value:{digits}} against {alone:{digits}} alone, {change}{unit} ({interval}): "
        f"{difference.verdict} in this run"
    ).replace("%", " %")


def results_table(results: Mapping[str, ReportedMetric], title: str) -> Table:
    """Return a table with a row for each metric of one net."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("metric", overflow="fold")
    table.add_column("value", justify="right")
    for name, result in results.items():
        table.add_row(escape(name), _with_interval(result))
    return table


def _with_interval(result: ReportedMetric) -> str:
    if result.interval is None or not all(map(math.isfinite, result.interval)):
        return format_number(result.value)
    low, high = result.interval
    return f"{format_number(result.value)} ({format_number(low)} to {format_number(high)})"
