"""Read the finished trials of a sweep, and compare combinations of options."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np

from kdkit.engine.storage.finished_run import read_metrics
from kdkit.engine.storage.run_folder import read_record
from kdkit.errors import RecipeError, RunFolderError, Terminated, describe_error, did_you_mean
from kdkit.metrics.base import Metric, is_better, lower_is_better
from kdkit.metrics.bootstrap import without_interval
from kdkit.metrics.comparison import Comparison, PairsOfRuns, compare_over_seeds
from kdkit.metrics.paired import SplitPredictions
from kdkit.metrics.resampling import affordable_resamples
from kdkit.study.study import Study
from kdkit.study.sweep_results import LEVEL, Cell, CellResults, Repetition, SweepResults, spread
from kdkit.study.trial import recipe_of
from kdkit.utils.read_json import mapping, whole_number

_RESAMPLES = 2000  # enough for the tails of the intervals of about twenty comparisons


def compare_cells(
    study: Study,
    cells: Sequence[Cell],
    metric: Metric,
    *,
    net: str | None,
    student: str,
    average_over: tuple[str, ...],
    reference: str,
) -> SweepResults:
    """Read the finished trials of all cells, find the best cell, and compare it with the others.

    If there is a reference, each cell is compared with its reference instead.

    cells: with their finished trials only. net: the net whose metrics are compared; if None, the net named `student`,
    or if a cell's recipe has no such net, the last one with metrics. reference: its options, such as "method=kd", or
    "". Raises RecipeError if no run has such a net, and RunFolderError if no run can be read.
    """
    metric = without_interval(metric)
    finished = [_FinishedCell(study, cell, metric, net=net, student=student) for cell in cells]
    runs = [run for cell in finished for run in cell.runs.values()]
    damaged = [error for cell in finished for error in cell.damaged]
    if not runs:
        raise [*damaged, *(error for cell in finished for error in cell.without_net)][0]
    best = _best(finished, metric)
    by_label = {cell.label: cell for cell in finished if cell.runs}
    sides: dict[str, tuple[_FinishedCell, _FinishedCell]] = {}  # of each comparison, by the label of its cell
    for label, cell in by_label.items():
        if reference and cell.reference in by_label:
            sides[label] = cell, by_label[cell.reference]
        elif not reference and best is not None and cell is not best:
            sides[label] = best, cell
    level = _corrected_level(len(sides))
    distillation_level = _corrected_level(sum(bool(cell.baselines) for cell in finished))
    # If runs differ only in their seeds but have different test samples, as with simulated data, they may share none.
    # NaN if the overlap of any run is unknown.
    overlap = float(np.max([run.overlap for run in runs])) if average_over else 0.0
    results = []
    for cell in finished:
        comparison = distillation = None
        if cell.label in sides:
            first, second = sides[cell.label]
            comparison = _compare(first.nets, second.nets, metric, level, overlap)
        if cell.baselines:
            distillation = _compare(cell.nets, cell.baselines, metric, distillation_level, overlap)
        results.append(
            CellResults(
                label=cell.label,
                options=cell.options,
                metrics=_by_metric(cell.nets),
                validation={key: run.validation for key, run in cell.runs.items()},
                comparison=comparison,
                reference=cell.reference,
                alone=_by_metric(cell.baselines),
                distillation=distillation,
            )
        )
    names = {run.name for run in runs}
    return SweepResults(
        cells=tuple(results),
        metric=metric.name,
        lower_is_better=lower_is_better(metric),
        net=names.pop() if len(names) == 1 else "",
        best=None if best is None else finished.index(best),
        reported_on="test" if runs[0].has_test else "validation",
        level=level,
        reference=reference,
        distillation_level=distillation_level,
        left_out=tuple(map(str, damaged)),
        without_net=tuple(cell.label for cell in finished if cell.without_net),
        average_over=average_over,
    )


class _ReportedNet(NamedTuple):
    """A net of a finished trial: its metrics by name, and its predictions, which are too large to keep in memory.

    metric: the compared metric, as the recipe of the trial has it.
    """

    metrics: Mapping[str, float]
    predictions: Callable[[], SplitPredictions]
    metric: Metric


class _NoSuchNetError(RecipeError):
    """A run without the compared net, because the nets of a recipe may depend on its options."""


class _Run:
    """A finished trial: the compared net and its baseline, which is None if there is none.

    name: of the net. validation: the metric on the validation split, which chooses cells without looking at the test
    split. has_test: whether the data has a test split. overlap: reported samples for each training sample.

    Raises RunFolderError if a compared file cannot be read, and _NoSuchNetError if there is no such net.
    """

    def __init__(self, study: Study, trial: str, metric: Metric, *, net: str | None, student: str) -> None:
        path = study.path(trial)
        reported, record = read_metrics(path), read_record(path)
        metrics, baselines = reported.results, mapping(record, "baselines")
        if net is None:
            others = [name for name in metrics if name not in baselines.values()]
            net = student if student in metrics else others[-1] if others else student
        if net not in metrics:
            raise _NoSuchNetError(f"run {path} has no metrics of net {net!r}; {did_you_mean(net, metrics)}")
        self.name = net
        validation, test = predictions = study.predictions(trial, net)
        # The metrics of a recipe may depend on its options.
        is_computed = metric.name in metrics[net]
        if is_computed:
            metric = _metric_of(study, trial, metric, predictions, metrics[net][metric.name].value)
        self.validation = float(metric.fit(validation).compute(validation).value) if is_computed else math.nan

        def reported_net(name: str) -> _ReportedNet:
            values = {metric_name: result.value for metric_name, result in metrics[name].items()}
            return _ReportedNet(values, partial(study.predictions, trial, name), metric)

        self.net = reported_net(net)
        baseline = str(baselines.get(net, ""))
        self.alone = reported_net(baseline) if metrics.get(baseline) else None
        if self.alone is not None:
            self.alone.predictions()  # raises RunFolderError
        self.has_test = reported.reported_on == "test"
        size = whole_number(record, "training_size")
        self.overlap = len(test) / size if size is not None and size > 0 else math.nan


def _metric_of(study: Study, name: str, metric: Metric, predictions: SplitPredictions, value: float) -> Metric:
    """Return the compared metric as the recipe of a trial has it; it may hold what depends on the options.

    metric: that of another trial, which is the same if it has the recorded value for the predictions of this one.
    Raises RunFolderError if it is not, and recipe() fails now.
    """
    with suppress(Exception):  # it may raise anything for the data of another trial
        computed = metric.fit(predictions.validation).compute(predictions.test).value
        if math.isclose(computed, value, rel_tol=1e-6) or (math.isnan(computed) and math.isnan(value)):
            return metric
    trial = next(trial for trial in study.trials if trial.name == name)
    try:
        metrics = recipe_of(trial).metrics
    except Terminated:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise RunFolderError(
            f"run {study.path(name)} cannot be compared: its metric {metric.name!r} depends on the options of "
            f"recipe(), which fails now: {describe_error(error)}"
        ) from error
    return next((without_interval(own) for own in metrics if own.name == metric.name), metric)


class _FinishedCell:
    """The finished trials of a cell. runs: by repetition. damaged, without_net: the errors of the others.

    nets, baselines: of each run, by repetition; a run may have no baseline. validation: the compared metric on the
    validation split.
    """

    def __init__(self, study: Study, cell: Cell, metric: Metric, *, net: str | None, student: str) -> None:
        self.label, self.options, self.reference = cell.label, cell.options, cell.reference
        self.runs: dict[Repetition, _Run] = {}
        self.damaged: list[RunFolderError] = []
        self.without_net: list[_NoSuchNetError] = []
        for key, name in cell.trials.items():
            try:
                self.runs[key] = _Run(study, name, metric, net=net, student=student)
            except RunFolderError as error:
                self.damaged.append(error)
            except _NoSuchNetError as error:
                self.without_net.append(error)
        self.nets = {key: run.net for key, run in self.runs.items()}
        self.baselines = {key: run.alone for key, run in self.runs.items() if run.alone is not None}
        self.validation = spread(run.validation for run in self.runs.values())


def _best(cells: Sequence[_FinishedCell], metric: Metric) -> _FinishedCell | None:
    """Return the cell with the best mean on the validation split; None if the metric is undefined for all of them."""
    best, value = None, math.nan
    for cell in cells:
        if is_better(metric, cell.validation.mean, value):
            best, value = cell, cell.validation.mean
    return best


def _corrected_level(comparisons: int) -> float:
    """Return the level of each of several intervals, so that all of them together have LEVEL (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(1, comparisons)


def _compare(
    candidates: Mapping[Repetition, _ReportedNet],
    baselines: Mapping[Repetition, _ReportedNet],
    metric: Metric,
    level: float,
    overlap: float,
) -> Comparison:
    """Compare nets over the repetitions that both sides have. overlap: the largest of any run, see `_Run`."""
    keys = [key for key in candidates if key in baselines]
    candidate_values, baseline_values = (
        dict[Hashable, float]({key: nets[key].metrics.get(metric.name, math.nan) for key in keys})
        for nets in (candidates, baselines)
    )

    def predictions() -> PairsOfRuns:
        return [candidates[key].predictions() for key in keys], [baselines[key].predictions() for key in keys]

    resamples = affordable_resamples(metric, _RESAMPLES, level=level)
    own = candidates[keys[0]].metric if keys else metric
    comparison = compare_over_seeds(
        own, candidate_values, baseline_values, predictions, resamples=resamples, level=level
    )
    return comparison.with_overlap(overlap)


def _by_metric(nets: Mapping[Repetition, _ReportedNet]) -> dict[str, dict[Repetition, float]]:
    """Return the values of each metric by repetition."""
    names = dict.fromkeys(name for net in nets.values() for name in net.metrics)
    return {name: {key: net.metrics[name] for key, net in nets.items() if name in net.metrics} for name in names}
