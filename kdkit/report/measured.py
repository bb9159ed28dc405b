"""The parts of a report about measurements of the networks: cost, similarity of layers, and files of `kdkit export`."""

import math
from collections.abc import Sequence
from typing import Any

from kdkit.export.card import FOLDER, read_cards, summary_rows
from kdkit.report import formats
from kdkit.report.charts import heat_map
from kdkit.report.runs import ReportedRun, nets_by_role
from kdkit.utils.read_json import number_or

Values = dict[str, Any]

_MOST_TEACHERS = 3  # most teachers that sentences compare with a student
# The name of each figure in a sentence, and its format.
_FIGURES = {
    "parameters": ("parameters", formats.short),
    "bytes": ("bytes of weights", formats.size),
    "multiply_adds": ("multiply-adds", formats.short),
    "latency": ("latency", formats.moment),
}


def cost(runs: Sequence[ReportedRun]) -> Values:
    """Return a row for each net with its size and the cost of its training, and sentences that compare them."""
    table: list[Values] = []
    for run in runs:
        reference = _figures(run, run.student)  # the small figures are multiples of it
        for net in nets_by_role(run):
            stages = [stage for stage in run.stages if run.trains(stage.name, net)]
            seconds = sum(number_or(entry.get("seconds"), 0.0) for stage in stages for entry in stage.epochs)
            peaks = [entry.get("peak_memory_bytes") for stage in stages for entry in stage.epochs]
            peak = max((value for value in peaks if isinstance(value, int)), default=None)
            figures = _figures(run, net)
            latency = run.cost(net).latency
            table.append(
                {
                    "run": run.label,
                    "net": net,
                    "role": run.role(net),
                    "cells": [
                        {"text": show(figures[name]), "detail": formats.ratio(figures[name], reference[name])}
                        for name, (_, show) in _FIGURES.items()
                    ],
                    "p95": "" if latency is None else formats.moment(latency.p95),
                    "seconds": formats.duration(seconds) if stages else formats.DASH,
                    "epochs": sum(len(stage.epochs) for stage in stages) or formats.DASH,
                    "memory": formats.size(peak),
                }
            )
    return {"rows": table, "sentences": _comparisons(runs), "notes": _conditions(runs)}


def layer_maps(runs: Sequence[ReportedRun]) -> Values:
    """Return a heat map for each student or baseline and each of its teachers, or the reason if there are none."""
    maps, samples = [], 0
    for run in runs:
        if run.measurements is None:
            continue
        order = {teacher: index for index, teacher in enumerate(run.teachers_of(run.student))}  # as in other sections
        pairs = sorted(run.measurements.similarities, key=lambda pair: order.get(pair.teacher, len(order)))
        for pair in pairs:
            samples = max(samples, run.measurements.samples)
            title = pair.student if len(runs) == 1 else f"{pair.student}, {run.label}"
            # The mean over rows is high if the student's layers resemble the teacher's layers.
            highest = [max(shown) for row in pair.values if (shown := [v for v in row if not math.isnan(v)])]
            maps.append(
                {
                    "title": title,
                    "role": run.role(pair.student),
                    "teacher": pair.teacher,
                    "highest": formats.plain(sum(highest) / len(highest) if highest else None),
                    "chart": heat_map(
                        f"Similarity of the layers of {pair.student} and {pair.teacher}",
                        pair.values,
                        rows=pair.student_layers,
                        columns=pair.teacher_layers,
                    ),
                }
            )
    measured = [run.measurements for run in runs if run.measurements is not None]
    notes = dict.fromkeys(item.note for item in measured if item.note)
    if not measured:
        missing = "These runs measured no layers: they ran with --no-measure, in several processes, or did not finish."
    else:
        missing = "No student has a network as its teacher, so there are no layers to compare."
    return {"maps": maps, "samples": samples, "notes": list(notes), "missing": "" if maps or notes else missing}


def exports(runs: Sequence[ReportedRun]) -> list[Values]:
    """Return a table of the files of each run that has exports, with the points that each file loses."""
    tables = []
    for run in runs:
        if cards := read_cards(run.folder / FOLDER):
            metrics = dict.fromkeys(metric for card in cards for metric in card["metric_gate"]["scores"])
            titles, *rows = summary_rows(cards)
            for index, card in enumerate(cards):
                scores = card["metric_gate"]["scores"]
                lost = [scores.get(metric, {}).get("points_lost") for metric in metrics]
                rows[index] += tuple("undefined" if points is None else f"{points:.2f}" for points in lost)
            titles += tuple(f"{metric}, points lost" for metric in metrics)
            tables.append({"run": run.label, "titles": titles, "rows": rows})
    return tables


def _figures(run: ReportedRun, net: str) -> dict[str, Any]:
    """Return the figures of a net by name; None if a figure is unknown."""
    measured = run.cost(net)
    return {
        "parameters": run.parameters(net),
        # The size of the file, for runs without measurements.
        "bytes": run.weights_bytes(net) if measured.weights_bytes is None else measured.weights_bytes,
        "multiply_adds": measured.multiply_adds,
        "latency": None if measured.latency is None else measured.latency.p50,
    }


def _comparisons(runs: Sequence[ReportedRun]) -> list[str]:
    """Return a sentence for each teacher of each student that compares their costs, without duplicates."""
    sentences: dict[str, None] = {}
    for run in runs:
        student = _figures(run, run.student)
        for teacher in run.teachers_of(run.student)[:_MOST_TEACHERS]:
            figures = _figures(run, teacher)
            ratios = {
                words: formats.ratio(figures[name], student[name])
                for name, (words, _) in _FIGURES.items()
                if name != "bytes"
            }
            parts = [f"{ratio} the {words}" for words, ratio in ratios.items() if ratio]
            if parts:
                listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
                sentences[f"{teacher} has {listed} of {run.student}."] = None
    return list(sentences)[:_MOST_TEACHERS]


def _conditions(runs: Sequence[ReportedRun]) -> list[str]:
    """Return how latencies were measured, and what could not be measured."""
    conditions: dict[str, None] = {}
    reasons: dict[str, None] = {}
    for run in runs:
        for net in run.nets:
            measured = run.cost(net)
            if measured.note:
                reasons[f"{net}: {measured.note}."] = None
            if (latency := measured.latency) is not None:
                device = "one thread of the CPU" if latency.device == "cpu" else latency.device
                conditions[f"{device}, {latency.precision}"] = None
    text = "; ".join(conditions)
    sentence = (
        f"Latency is for one sample: the median and the 95th percentile of up to 20 passes at the end of the run, "
        f"on {text}. It depends on the machine and its load."
    )
    return [*([sentence] if conditions else ()), *reasons]
