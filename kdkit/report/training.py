"""The section of a report about training: metrics, terms and gradients by epoch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from kdkit.engine.storage.finished_run import FinishedStage
from kdkit.engine.storage.history import KEYS
from kdkit.report import formats
from kdkit.report.charts import Series, line_chart
from kdkit.report.runs import ReportedRun
from kdkit.report.svg import COLOURS
from kdkit.utils.read_json import mapping, number_or
from kdkit.utils.reprs import describe_count

History = tuple[int, ReportedRun, FinishedStage]  # the first number is the index of the run, which chooses its colour


def training(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Return the charts of each stage: the monitored metric, the terms, and gradients if they were recorded."""
    stages = []
    for name in dict.fromkeys(stage.name for run in runs for stage in run.stages):
        histories = [
            (index, run, stage) for index, run in enumerate(runs) for stage in run.stages if stage.name == name
        ]
        first = [entry for _, _, stage in histories for entry in stage.epochs[:1]]
        # A dict as an ordered set: runs of different recipes may have other metrics and terms.
        monitors = dict.fromkeys(key for entry in first for key in entry if key not in KEYS)
        terms = dict.fromkeys(label for entry in first for label in mapping(entry, "terms"))
        charts = [
            _chart(f"Validation {formats.metric_title(monitor)}", _series(histories, monitor)) for monitor in monitors
        ]
        for label in terms:
            weights = {run.weight(name, label) for _, run, _ in histories} - {""}
            note = weights.pop() if len(weights) == 1 else ""
            charts.append(_chart(label, _series(histories, "terms", label), note))
        charts += _gradient_charts(histories)
        ended = ""
        if len(runs) == 1:
            _, _, stage = histories[0]
            ended = f"{describe_count(len(stage.epochs), 'epoch')}; epoch {stage.best_epoch + 1} is kept."
        stages.append({"name": name, "ended": ended, "charts": charts})
    return stages


def _gradient_charts(histories: Sequence[History]) -> Iterator[dict[str, Any]]:
    """Yield charts of gradient norms and cosines: for one run all terms together, for several runs a chart per term."""
    for key, title, note in (
        ("norms", "Gradient norm", "of the weighted terms"),
        ("cosines", "Cosine of gradients", "below 0 the terms are in conflict"),
    ):
        recorded = [mapping(entry, "gradients") for _, _, stage in histories for entry in stage.epochs]
        names = list(dict.fromkeys(name for gradients in recorded for name in mapping(gradients, key)))
        # The full range of a cosine, so that conflicts are easy to see and charts are comparable.
        limits = (-1.0, 1.0) if key == "cosines" else None
        by_name = {name: _series(histories, "gradients", key, name) for name in names}
        if len(histories) == 1 and names:
            lines = [
                replace(line, name=name, colour=colour, marked=None)
                for colour, (name, (line,)) in enumerate(by_name.items())
            ]
            legend = [{"name": line.name, "colour": line.colour % COLOURS} for line in lines]
            yield {**_chart(title, lines, note, limits), "legend": legend}
            continue
        for name, series in by_name.items():
            yield _chart(f"{title}: {name}", series, note, limits)


def _chart(
    title: str, series: Sequence[Series], note: str = "", bounds: tuple[float, float] | None = None
) -> dict[str, Any]:
    return {"title": title, "note": note, "svg": line_chart(title, series, bounds=bounds), "legend": []}


def _series(histories: Sequence[History], *keys: str) -> list[Series]:
    """Return the value under these keys for each epoch of each run, with the kept epoch marked; NaN without a value."""
    series = []
    for index, run, stage in histories:
        points = []
        for epoch, entry in enumerate(stage.epochs, start=1):  # counted from 1, as on the console
            value: Any = entry
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            points.append((float(epoch), number_or(value, math.nan)))
        series.append(Series(name=run.label, points=points, colour=index, marked=float(stage.best_epoch + 1)))
    return series
