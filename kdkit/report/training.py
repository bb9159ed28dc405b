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

History = tuple[int, ReportedRun, FinishedStage]  # the first number is the index of the run, which chooses its colour


def training(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Return the charts of each stage: the monitored metric, the terms, and gradients if they were recorded."""
    stages = []
    for name in dict.fromkeys(stage.name for run in runs for stage in run.stages):
        histories = [
            (index, run, stage) for index, run in enumerate(runs) for stage in run.stages if stage.name == name
        ]
        charts: list[dict[str, Any]] = []
        # A dict as an ordered set: runs of different recipes may have other metrics and terms.
        monitors = dict.fromkeys(
            key for _, _, stage in histories for entry in stage.epochs[:1] for key in entry if key not in KEYS
        )
        terms = dict.fromkeys(
            label for _, _, stage in histories for entry in stage.epochs[:1] for label in mapping(entry, "terms")
        )
        for monitor in monitors:
            series = [_epochs(run, stage, index, (monitor,)) for index, run, stage in histories]
            title = f"Validation {formats.metric_title(monitor)}"
            charts.append(_chart(title, series))
        for label in terms:
            series = [_epochs(run, stage, index, ("terms", label)) for index, run, stage in histories]
            weights = {run.weight(name, label) for _, run, _ in histories} - {""}
            charts.append(_chart(label, series, note=weights.pop() if len(weights) == 1 else ""))
        charts += gradient_charts(histories)
        ended = ""
        if len(runs) == 1:
            count, kept = len(histories[0][2].epochs), histories[0][2].best_epoch + 1
            ended = f"{count} epoch{'' if count == 1 else 's'}; epoch {kept} is kept."
        stages.append({"name": name, "ended": ended, "charts": charts})
    return stages


def gradient_charts(histories: Sequence[History]) -> Iterator[dict[str, Any]]:
    """Yield charts of gradient norms and cosines: for one run all terms together, for several runs a chart per term."""
    for key, title, note in (
        ("norms", "Gradient norm", "of the weighted terms"),
        ("cosines", "Cosine of gradients", "below 0 the terms are in conflict"),
    ):
        recorded = [mapping(entry, "gradients") for _, _, stage in histories for entry in stage.epochs]
        names = list(dict.fromkeys(name for gradients in recorded for name in mapping(gradients, key)))
        # The full range of a cosine, so that conflicts are easy to see and charts are comparable.
        limits = (-1.0, 1.0) if key == "cosines" else None
        if len(histories) == 1 and names:
            _, run, stage = histories[0]
            series = [
                replace(_epochs(run, stage, colour, ("gradients", key, name)), name=name, marked=None)
                for colour, name in enumerate(names)
            ]
            legend = [{"name": line.name, "colour": line.colour % COLOURS} for line in series]
            yield {**_chart(title, series, note, limits), "legend": legend}
            continue
        for name in names:
            series = [_epochs(run, stage, index, ("gradients", key, name)) for index, run, stage in histories]
            yield _chart(f"{title}: {name}", series, note, limits)


def _chart(
    title: str, series: Sequence[Series], note: str = "", bounds: tuple[float, float] | None = None
) -> dict[str, Any]:
    return {"title": title, "note": note, "svg": line_chart(title, series, bounds=bounds), "legend": []}


def _epochs(run: ReportedRun, stage: FinishedStage, index: int, keys: Sequence[str]) -> Series:
    """Return the value under these keys for each epoch, with the kept epoch marked; NaN if an epoch has no value."""
    points = []
    for epoch, entry in enumerate(stage.epochs, start=1):
        value: Any = entry
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        points.append((float(epoch), number_or(value, math.nan)))
    # Epochs are counted from 1, as on the console.
    return Series(name=run.label, points=points, colour=index, marked=float(stage.best_epoch + 1))
