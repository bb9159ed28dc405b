"""Read a finished run: metrics, histories, samples and predictions. The content of its folder is not trusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit.engine.storage.predictions import predictions_file, read_predictions, require_same_kind
from kdkit.engine.storage.run_folder import METRICS, SAMPLES, how_to_resume, read_record
from kdkit.engine.storage.stage_folder import SUMMARY, StageFolder
from kdkit.errors import DataError, RunFolderError, did_you_mean
from kdkit.metrics.base import MetricResult
from kdkit.metrics.paired import SplitPredictions
from kdkit.metrics.per_class import ClassRow, NetReport, class_table
from kdkit.metrics.thresholds import Thresholds
from kdkit.nets.weights import stage_number
from kdkit.plugins.events import BaselineDifference
from kdkit.utils.files import exists
from kdkit.utils.paths import user_path
from kdkit.utils.read_json import mapping, number_or_nan, require_object, require_text, whole_number
from kdkit.utils.reprs import describe_names
from kdkit.utils.sealed import explain_unreadable_file, read_sealed_json, read_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """The metrics of a finished run by net and metric, with NaN for undefined values, and their split.

    differences: between students and their baselines, if the run has any. complete: False if the run was stopped during
    its evaluation, so that networks or differences are missing.
    """

    reported_on: str
    results: Mapping[str, Mapping[str, MetricResult]]
    differences: tuple[BaselineDifference, ...] = ()
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStage:
    """A finished stage: the epochs of its history, with NaN for null, and the best epoch."""

    name: str
    folder: Path
    epochs: tuple[Mapping[str, Any], ...]
    best_epoch: int


def read_metrics(folder: Path, *, partial: bool = False) -> RunMetrics:
    """Return the metrics of a run. Raises RunFolderError if there is no finished run, or they are damaged.

    partial: also return the metrics of a run whose evaluation is not finished, if it has any.
    """
    record, file = read_record(folder), folder / METRICS
    with explain_unreadable_file(file, f"restore it from a copy, or delete {folder} to run it again"):
        if not exists(file):
            resume = how_to_resume(folder, record)
            raise RunFolderError(f"{folder} holds no metrics: the run in it is not finished; to resume it: {resume}")
        content = require_object(read_sealed_json(file))
        reported_on = content["reported_on"]
        if reported_on not in ("test", "validation"):
            raise ValueError(f"it reports on {str(reported_on)[:40]!r}, which is not a split")
        results = {
            net: {metric: _result(fields) for metric, fields in require_object(metrics).items()}
            for net, metrics in require_object(content["metrics"]).items()
        }
        differences = tuple(_difference(row) for row in content.get("differences", ()))
        complete = content.get("complete", True) is True
        if not complete and not partial:
            raise RunFolderError(
                f"the evaluation of the run in {folder} is not finished, with metrics of {describe_names(results)} so "
                f"far; to resume it: {how_to_resume(folder, record)}"
            )
        return RunMetrics(reported_on=reported_on, results=results, differences=differences, complete=complete)


def read_stages(folder: Path) -> tuple[FinishedStage, ...]:
    """Return the finished stages of a run in order. Raises RunFolderError if a history is damaged."""
    stages = []
    for path in sorted((file.parent for file in folder.glob(f"*/{SUMMARY}")), key=stage_number):
        summary, history = StageFolder(path, writes=False).load_finished()
        best = whole_number(summary, "best_epoch")
        stages.append(
            FinishedStage(
                name=path.name.split("-", 1)[-1],
                folder=path,
                epochs=tuple(entry for entry in history if isinstance(entry, dict)),
                best_epoch=-1 if best is None else best,
            )
        )
    return tuple(stages)


def read_samples(folder: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of the samples that a run saved for reports, with their `ids`, and the names of the samples.

    Both are empty if there are none. Raises RunFolderError if they are damaged.
    """
    file = folder / SAMPLES
    if not exists(file):
        return {}, ()
    with explain_unreadable_file(file, "delete it to get a report without samples"):
        tensors, facts = read_tensors(file)
        ids = tensors["ids"]
        if ids.ndim != 1 or ids.dtype != torch.int64 or any(len(tensor) != len(ids) for tensor in tensors.values()):
            raise ValueError("its tensors do not have the same samples")
        names = tuple(map(require_text, facts.get("names") or ()))
        if names and len(names) != len(ids):
            raise ValueError(f"it has {len(names)} names for {len(ids)} samples")
        return tensors, names


def read_net_report(folder: Path, net: str) -> NetReport:
    """Return the predictions of a network in a run folder.

    Raises RunFolderError if there is no such run or network, or if predictions are missing or damaged.
    """
    record = read_record(folder)
    stages: dict[str, Path] = {}  # if several stages trained a network, the last one is reported
    for file in sorted(
        folder.glob("*/predictions-*-validation.safetensors"), key=lambda file: stage_number(file.parent)
    ):
        stages[file.name.removeprefix("predictions-").removesuffix("-validation.safetensors")] = file.parent
    if net not in stages:
        raise RunFolderError(f"{folder} holds no predictions of {net!r}; {did_you_mean(net, list(stages))}")
    metrics = read_metrics(folder, partial=True)
    if net not in metrics.results:  # killed during the evaluation of this network: test predictions may be missing
        raise RunFolderError(f"{folder} holds no metrics of {net!r}; resume the run to evaluate this net")
    validation, test = read_predictions(predictions_file(stages[net], net, "validation")), None
    if metrics.reported_on == "test":
        file = predictions_file(stages[net], net, "test")
        test = read_predictions(file)
        require_same_kind(file, validation, test)
    positives = mapping(record, "positives")
    is_valid = bool(positives) and all(type(count) is int for count in positives.values())
    return NetReport(validation=validation, test=test, train=positives if is_valid else None)


def stored_predictions(folder: str | Path, net: str) -> SplitPredictions:
    """Return the predictions of a net for the validation and the test split, as stored in the folder of a run.

    Without a test split, both are those for the validation split. `test.ids` are the ids of the samples. Raises
    RunFolderError if there is no such run or net, or if predictions are missing or damaged.
    """
    return read_net_report(user_path(folder), net).splits


def read_class_table(
    folder: Path, net: str, *, resamples: int, thresholds_by: Thresholds | None = None
) -> tuple[NetReport, tuple[ClassRow, ...]]:
    """Return the predictions of a network and its table of classes, see `class_table`.

    Raises RunFolderError if it has none.
    """
    report = read_net_report(folder, net)
    if read_record(folder).get("task") == "regression":  # numbers from 0 to 1 look like mixed labels of classes
        raise RunFolderError(
            f"{folder} has no table of classes: its labels are numbers (regression); kdkit report shows its metrics"
        )
    try:
        return report, class_table(report, resamples=resamples, thresholds_by=thresholds_by)
    except DataError as error:
        raise RunFolderError(f"the predictions of {net!r} in {folder} have no table of classes: {error}") from error


def _result(fields: Any) -> MetricResult:
    fields = require_object(fields)
    interval = fields.get("interval")
    intervals_by_class = require_object(fields.get("intervals_by_class", {}))
    return MetricResult(
        value=number_or_nan(fields["value"]),
        by_class={name: number_or_nan(value) for name, value in require_object(fields["by_class"]).items()},
        note=require_text(fields["note"]),
        interval=None if interval is None else _interval(interval),
        intervals_by_class={name: _interval(bounds) for name, bounds in intervals_by_class.items()},
    )


def _difference(fields: Any) -> BaselineDifference:
    fields = require_object(fields)
    return BaselineDifference(
        **{name: require_text(fields[name]) for name in ("student", "baseline", "metric", "verdict")},
        value=number_or_nan(fields["value"]),
        interval=_interval(fields["interval"]),
        level=number_or_nan(fields["level"]),
        lower_is_better=fields["lower_is_better"] is True,
    )


def _interval(bounds: Any) -> tuple[float, float]:
    low, high = bounds
    return number_or_nan(low), number_or_nan(high)
