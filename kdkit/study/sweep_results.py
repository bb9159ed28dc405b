"""The results of a sweep: metrics by cell, the best cell, and whether it can be distinguished from the others."""

import csv
import io
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdkit.engine.storage.reports import read_metrics
from kdkit.engine.storage.run_folder import read_record
from kdkit.errors import RecipeError, RunFolderError, did_you_mean
from kdkit.metrics.base import Metric, is_better
from kdkit.metrics.bootstrap import without_interval
from kdkit.metrics.comparison import Comparison, PairsOfRuns, compare_over_seeds
from kdkit.metrics.paired import SplitPredictions
from kdkit.study.study import Study
from kdkit.utils.files import to_json, write_output

_LEVEL = 0.95  # of all comparisons together
_RELATIONS = {"better": "better than", "worse": "worse than", "not distinguishable": "not distinguishable from"}
_RESAMPLES = 2000  # enough for the tails of the levels of about twenty comparisons


class Spread(NamedTuple):
    """A metric over seeds: its mean, and its sample standard deviation, NaN for a single seed."""

    mean: float
    sd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResults:
    """The finished runs of one combination of options.

    metrics: of the net on the reported split, by metric and seed. validation: the compared metric on the validation
    split, by seed. comparison: of the best cell with this one; None for the best cell and for one without a run.
    alone: as `metrics`, of the student without teachers, if the runs have such a baseline. distillation: the comparison
    of the net with it; None if there is none.
    """

    label: str
    options: Mapping[str, Any]
    metrics: Mapping[str, Mapping[int, float]]
    validation: Mapping[int, float]
    comparison: Comparison | None = None
    alone: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    distillation: Comparison | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds with a finished run."""
        return tuple(self.validation)

    def spread(self, metric: str) -> Spread:
        """Return the mean and standard deviation of a metric over seeds; NaN if there is no finished run."""
        return spread(self.metrics.get(metric, {}).values())


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResults:
    """The table of a sweep.

    metric: the name of the compared metric. best: the index of the cell with the best mean of it on the validation
    split. reported_on: the split of the metrics, "test", or "validation" if the data has no test split.
    level: of each interval; all of them contain their differences together with 95 % confidence (Bonferroni).
    distillation_level: likewise of each interval of a student against its baseline.
    left_out: why finished runs are missing, for each one that cannot be read.
    """

    cells: tuple[CellResults, ...]
    metric: str
    best: int
    reported_on: str
    level: float
    distillation_level: float = _LEVEL
    left_out: tuple[str, ...] = ()

    def verdicts(self) -> list[str]:
        """Return a sentence for the best cell, one for each comparison of it, and one for each student and baseline."""
        best = self.cells[self.best].label
        sentences = [
            f"{_scope(comparison)}{best} is {_RELATIONS[comparison.verdict]} {cell.label}: {self.metric} "
            f"{_figures(comparison)}"
            for cell in self.cells
            if (comparison := cell.comparison) is not None
        ]
        sentences += [
            f"{_scope(comparison)}{cell.label} is {_RELATIONS[comparison.verdict]} the same student alone: "
            f"{self.metric} {_figures(comparison)}"
            for cell in self.cells
            if (comparison := cell.distillation) is not None
        ]
        return [f"{best} is the best on the validation split", *sentences]

    def notes(self) -> list[str]:
        """Return the reasons why comparisons are missing, and the assumptions of the others."""
        comparisons = [cell.comparison for cell in self.cells if cell.comparison is not None]
        against_baselines = [cell.distillation for cell in self.cells if cell.distillation is not None]
        notes = dict.fromkeys(
            comparison.note
            for comparison in (*comparisons, *against_baselines)
            if comparison.note and (comparison.seeds is not None or comparison.samples is None)
        )
        if (comparisons or against_baselines) and min(len(cell.seeds) for cell in self.cells if cell.seeds) == 1:
            notes["one seed cannot tell which options are better, or whether distillation helps: --seeds 5"] = None
        if max(len(comparisons), len(against_baselines)) > 1:
            notes[f"all intervals of a table together hold with {_LEVEL:.0%} confidence (Bonferroni)"] = None
        if comparisons and self.reported_on == "validation":
            # The best of several is too good on the samples that it was chosen on.
            notes["there is no test split: the best was chosen on the samples on which it is compared"] = None
        return list(notes)

    def as_json(self) -> str:
        """Return everything as JSON, with null for numbers that are undefined."""
        cells = [
            {
                "options": {
                    name: value if isinstance(value, bool | int | float | str | None) else str(value)
                    for name, value in cell.options.items()
                },
                "seeds": list(cell.seeds),
                "metrics": _metrics_as_dict(cell.metrics),
                "metrics_alone": _metrics_as_dict(cell.alone),
                "validation": {self.metric: {str(seed): value for seed, value in cell.validation.items()}},
                "best_minus_this": None if cell.comparison is None else _as_dict(cell.comparison),
                "this_minus_alone": None if cell.distillation is None else _as_dict(cell.distillation),
            }
            for cell in self.cells
        ]
        return to_json(
            {
                "metric": self.metric,
                "reported_on": self.reported_on,
                "best": cells[self.best]["options"],
                "level": self.level,
                "distillation_level": self.distillation_level,
                "cells": cells,
                "left_out": self.left_out,
            },
            indent=2,
        )

    def as_csv(self) -> str:
        """Return a row for each finished run: its options, its seed, and its metrics."""
        options = list(dict.fromkeys(name for cell in self.cells for name in cell.options))
        metrics = list(dict.fromkeys(name for cell in self.cells for name in cell.metrics))
        alone = list(dict.fromkeys(name for cell in self.cells for name in cell.alone))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*options, "seed", f"validation_{self.metric}", *metrics, *(f"alone_{name}" for name in alone)])
        for cell in self.cells:
            for seed in cell.seeds:
                values = [cell.metrics.get(name, {}).get(seed, "") for name in metrics]
                values += [cell.alone.get(name, {}).get(seed, "") for name in alone]
                writer.writerow([*cell.options.values(), seed, cell.validation[seed], *values])
        return text.getvalue()

    def save(self, folder: Path) -> None:
        """Write results.json and results.csv to a folder. Raises KdkitError if they cannot be written."""
        write_output(folder / "results.json", self.as_json(), option="--out FOLDER")
        write_output(folder / "results.csv", self.as_csv(), option="--out FOLDER")


class CellRuns(NamedTuple):
    """A cell before its files are read. trials: the names of its finished trials by seed."""

    label: str
    options: Mapping[str, Any]
    trials: Mapping[int, str]


def compare_cells(
    study: Study, cells: Sequence[CellRuns], metric: Metric, *, net: str | None, student: str
) -> SweepResults:
    """Read the finished trials of all cells, find the best cell, and compare it with the others.

    net: whose metrics are compared; if None, the one named `student`, or in a cell whose recipe names it otherwise,
    the last one with metrics. Raises RecipeError if a run has no such net or metric, and RunFolderError if no run
    can be read.
    """
    metric = without_interval(metric)
    runs: list[dict[int, _Run]] = []
    damaged: list[RunFolderError] = []
    for finished in cells:
        runs.append({})
        for seed, name in finished.trials.items():
            try:
                runs[-1][seed] = _Run(study, name, metric, net=net, student=student)
            except RunFolderError as error:
                damaged.append(error)
    if damaged and not any(runs):
        raise damaged[0]
    results = [
        CellResults(
            label=cell.label,
            options=cell.options,
            metrics=_by_metric({seed: run.net.metrics for seed, run in cell_runs.items()}),
            alone=_by_metric({seed: run.alone.metrics for seed, run in cell_runs.items()}),
            validation={seed: run.validation for seed, run in cell_runs.items()},
        )
        for cell, cell_runs in zip(cells, runs, strict=True)
    ]
    best = next(index for index, cell in enumerate(results) if cell.validation)
    for index, cell in enumerate(results):
        if is_better(metric, spread(cell.validation.values()).mean, spread(results[best].validation.values()).mean):
            best = index
    compared = [index for index, cell in enumerate(results) if index != best and cell.validation]
    level = 1 - (1 - _LEVEL) / max(1, len(compared))  # Bonferroni's correction
    nets = [{seed: run.net for seed, run in cell_runs.items()} for cell_runs in runs]
    for index in compared:
        results[index] = replace(results[index], comparison=_compare(nets[best], nets[index], metric, level))
    with_baseline = [index for index, cell in enumerate(results) if cell.alone]
    distillation_level = 1 - (1 - _LEVEL) / max(1, len(with_baseline))
    for index in with_baseline:
        alone = {seed: run.alone for seed, run in runs[index].items() if run.alone.metrics}
        comparison = _compare(nets[index], alone, metric, distillation_level)
        results[index] = replace(results[index], distillation=comparison)
    has_test = next(run.has_test for cell_runs in runs for run in cell_runs.values())
    return SweepResults(
        cells=tuple(results),
        metric=metric.name,
        best=best,
        reported_on="test" if has_test else "validation",
        level=level,
        distillation_level=distillation_level,
        left_out=tuple(map(str, damaged)),
    )


class _ReportedNet(NamedTuple):
    """A net of a finished trial: its metrics by name, and its predictions, which are large and not kept in memory."""

    metrics: Mapping[str, float]
    predictions: Callable[[], SplitPredictions]


class _Run:
    """A finished trial: the net in it that is compared, and its baseline, which has no metrics if there is none.

    validation: the metric on the validation split, by which cells are chosen without a look at the test split.
    has_test: whether the data has a test split.

    Raises RunFolderError if a file that is compared cannot be read, and RecipeError if there is no such net.
    """

    def __init__(self, study: Study, trial: str, metric: Metric, *, net: str | None, student: str) -> None:
        path = study.path(trial)
        reported, recorded = read_metrics(path), read_record(path).get("baselines")
        metrics, baselines = reported.results, recorded if isinstance(recorded, dict) else {}  # the file may be changed
        if net is None:
            others = [name for name in metrics if name not in baselines.values()]
            net = student if student in metrics else others[-1] if others else student
        if net not in metrics:
            raise RecipeError(f"run {path} has no metrics of net {net!r}; {did_you_mean(net, metrics)}")
        self.net, self.alone = (
            _ReportedNet(
                {metric_name: result.value for metric_name, result in metrics.get(name, {}).items()},
                partial(study.predictions, trial, name),
            )
            for name in (net, str(baselines.get(net, "")))
        )
        self.has_test = reported.reported_on == "test"
        validation = self.net.predictions().validation
        # The metrics of a recipe may depend on its options.
        is_computed = metric.name in self.net.metrics
        self.validation = float(metric.fit(validation).compute(validation).value) if is_computed else math.nan
        if self.alone.metrics:
            self.alone.predictions()  # raises RunFolderError


def spread(values: Iterable[float]) -> Spread:
    """Return the mean and the standard deviation of values; NaN if there are too few, or one is NaN."""
    numbers = np.array(list(values), dtype=np.float64)  # statistics.stdev raises for a NaN
    mean = float(numbers.mean()) if len(numbers) else math.nan
    return Spread(mean, float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan)


def _compare(
    candidates: Mapping[int, _ReportedNet], baselines: Mapping[int, _ReportedNet], metric: Metric, level: float
) -> Comparison:
    """Compare nets over the seeds that both sides have."""
    seeds = [seed for seed in candidates if seed in baselines]
    candidate_values, baseline_values = (
        dict[Hashable, float]({seed: nets[seed].metrics.get(metric.name, math.nan) for seed in seeds})
        for nets in (candidates, baselines)
    )

    def predictions() -> PairsOfRuns:
        return [candidates[seed].predictions() for seed in seeds], [baselines[seed].predictions() for seed in seeds]

    return compare_over_seeds(metric, candidate_values, baseline_values, predictions, resamples=_RESAMPLES, level=level)


def _by_metric(values: Mapping[int, Mapping[str, float]]) -> dict[str, dict[int, float]]:
    """Return values by seed and metric as values by metric and seed."""
    names = dict.fromkeys(name for of_seed in values.values() for name in of_seed)
    return {name: {seed: of_seed[name] for seed, of_seed in values.items() if name in of_seed} for name in names}


def _metrics_as_dict(metrics: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Return metrics by seed as values for JSON."""
    return {
        name: {**spread(values.values())._asdict(), "by_seed": {str(seed): value for seed, value in values.items()}}
        for name, values in metrics.items()
    }


def _scope(comparison: Comparison) -> str:
    return "" if comparison.seeds is not None else "in these runs, "


def _figures(comparison: Comparison) -> str:
    """Return the differences with their intervals, and the note."""
    parts = []
    for unit, difference in (("seeds", comparison.seeds), ("samples", comparison.samples)):
        if difference is not None:
            low, high = difference.interval
            parts.append(f"{difference.value:+.4f} ({low:+.4f} to {high:+.4f}) over {difference.pairs} {unit}")
    if len(parts) == 2 and comparison.total is not None:
        low, high = comparison.total.interval
        parts.append(f"({low:+.4f} to {high:+.4f}) over both")
    return "; ".join(filter(None, [", ".join(parts), comparison.note]))


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as values for JSON."""
    differences = {
        name: None if value is None else {"value": value.value, "interval": value.interval, "pairs": value.pairs}
        for name, value in (("seeds", comparison.seeds), ("samples", comparison.samples))
    }
    interval = None if comparison.total is None else comparison.total.interval
    return {"verdict": comparison.verdict, **differences, "interval": interval, "note": comparison.note}
