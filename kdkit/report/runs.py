"""Read the runs of a report: records, metrics, histories and predictions. Nothing in a run folder is trusted."""

import hashlib
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdkit.engine.baseline_differences import baseline_difference
from kdkit.engine.storage.finished_run import (
    FinishedStage,
    RunMetrics,
    read_metrics,
    read_net_report,
    read_samples,
    read_stages,
)
from kdkit.engine.storage.measurements import Measurements, NetCost, read_measurements
from kdkit.engine.storage.run_folder import read_record
from kdkit.errors import DataError, KdkitError, RunFolderError
from kdkit.metrics.bootstrap import BootstrapInterval
from kdkit.metrics.paired import SplitPredictions, paired_bootstrap
from kdkit.metrics.per_class import NetReport
from kdkit.nets.weights import runs_in, stage_weights
from kdkit.plugins.events import BaselineDifference
from kdkit.report.analysis import same_metric
from kdkit.utils.files import read_file
from kdkit.utils.read_json import items, mapping, number_or, rows, whole_number
from kdkit.utils.reprs import describe_names, weight_text, without_addresses

RECIPE = "recipe.py"
_SOURCE = 1_000_000  # the most characters of a recipe that a page shows
_RESAMPLES = 1000
_ROLES = ("student", "baseline", "teacher", "")


class ReportedSample(NamedTuple):
    """A sample of the reported split: its label or labels, the outputs of a net, (classes,), and the classes."""

    labels: NDArray[Any]
    outputs: NDArray[Any]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportedRun:
    """A finished run in a report.

    label: its name among the runs of the report. record: the content of `run.json`. metrics: with intervals added if
    kdkit can compute them from the predictions. reports: the predictions by net. samples: the tensors of the student's
    worst predictions, each (samples, ...), with their `ids`, if the data can be shown. sample_names: the names of these
    samples, if they have any; see Split.report_tensors and report_names.
    measurements: of the nets; None if the run has none. problems: what could not be read.
    """

    folder: Path
    label: str
    record: Mapping[str, Any]
    metrics: RunMetrics
    stages: tuple[FinishedStage, ...] = ()
    reports: Mapping[str, NetReport] = field(default_factory=dict)
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    sample_names: tuple[str, ...] = ()
    measurements: Measurements | None = None
    source: str | None = None
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ReportedRun({self.label!r}, nets: {describe_names(self.metrics.results)}, in {str(self.folder)!r})"

    @classmethod
    def read(cls, folder: str | Path, label: str) -> "ReportedRun":
        """Read a run. Raises RunFolderError if a folder holds no finished run; other faults become problems."""
        folder = Path(folder)
        record, metrics = read_record(folder), read_metrics(folder)
        problems: list[str] = []
        if not metrics.results:
            raise RunFolderError(f"{folder} has no metrics of any net; resume the run to evaluate its nets")

        def read_or(default: Any, read: Callable[..., Any], *args: Any) -> Any:
            try:
                return read(*args)
            except KdkitError as error:
                problems.append(str(error))
                return default

        stages = read_or((), read_stages, folder)
        readable = {net: read_or(None, read_net_report, folder, net) for net in metrics.results}
        reports = {net: report for net, report in readable.items() if report is not None}
        samples, sample_names = read_or(({}, ()), read_samples, folder)
        measurements = read_or(None, read_measurements, folder)
        try:
            source = read_file(folder / RECIPE).decode(errors="replace")[:_SOURCE]
        except OSError:  # a run from Python may have no recipe file
            source = None
        return cls(
            folder=folder,
            label=label,
            record=record,
            metrics=_with_intervals(metrics, reports),
            stages=stages,
            reports=reports,
            samples=samples,
            sample_names=sample_names,
            measurements=measurements,
            source=source,
            problems=tuple(problems),
        )

    @property
    def name(self) -> str:
        """The name of the recipe."""
        return str(self.record.get("recipe", "recipe"))

    @property
    def nets(self) -> tuple[str, ...]:
        """The nets that have metrics."""
        return tuple(self.metrics.results)

    @property
    def baselines(self) -> Mapping[str, str]:
        """The baseline of each student that has one."""
        names = mapping(self.record, "baselines")
        return {student: str(name) for student, name in names.items() if {student, str(name)} <= {*self.nets}}

    @cached_property
    def students(self) -> tuple[str, ...]:
        """The nets that learned from a teacher in the last stage; the last net if none did."""
        if self.baselines:
            return tuple(self.baselines)
        for terms in reversed([*terms_of(self.record).values()]):
            named = [str(term["student_net"]) for term in terms if term.get("teacher")]
            students = [name for name in dict.fromkeys(named) if name in self.nets]
            if students:
                return tuple(students)
        return self.nets[-1:]

    @property
    def student(self) -> str:
        """The student that the verdict is about."""
        return self.students[-1]

    def teachers_of(self, student: str) -> tuple[str, ...]:
        """Return the nets that a student learned from and that have metrics; other nets if the record has no terms."""
        named = matched_teachers(self.record, student) if terms_of(self.record) else self.nets
        # A teacher without predictions, such as an average, cannot be compared.
        excluded = {student, *self.baselines.values()}
        return tuple(name for name in named if name in self.nets and name not in excluded)

    def role(self, net: str) -> str:
        """Return the role of a net: "student", "baseline", "teacher", or "" for none of them."""
        if net in self.students:
            return "student"
        if net in self.baselines.values():
            return "baseline"
        return "teacher" if any(net in self.teachers_of(student) for student in self.students) else ""

    def monitored_metric(self, net: str) -> str:
        """Return the metric that chose the epoch of a net and decides its verdict; the first one if it is unknown."""
        metrics = self.metrics.results[net]
        for stage in reversed(self.stages):
            if self.trains(stage.name, net) and stage.epochs:
                monitored = [name for name in metrics if name in stage.epochs[0]]
                if monitored:
                    return monitored[0]
        return next(iter(metrics))

    def split(self, net: str) -> SplitPredictions | None:
        """Return the predictions of a net on the validation split and on the reported one, if they could be read."""
        report = self.reports.get(net)
        return None if report is None else report.splits

    def sample(self, net: str, id: int) -> ReportedSample | None:
        """Return the labels and outputs of a sample for a net; None if the net was not tested on it."""
        split = self.split(net)
        if split is None or split.test.ids is None:
            return None
        # By id, because the predictions do not include samples without a label.
        rows = np.flatnonzero(split.test.ids == id)
        if not len(rows):
            return None
        return ReportedSample(split.test.labels[rows[0]], split.test.outputs[rows[0]], split.test.classes)

    def cost(self, net: str) -> NetCost:
        """Return the measurements of a net."""
        return NetCost() if self.measurements is None else self.measurements.costs.get(net, NetCost())

    def weights_bytes(self, net: str) -> int | None:
        """Return the size of a net's weights file; None if the net was not trained in this run."""
        files = [stage_weights(stage.folder, net) for stage in self.stages]
        sizes = [file.stat().st_size for file in files if file.is_file()]
        return sizes[-1] if sizes else None  # from the last stage

    @property
    def command(self) -> str:
        """The command that started the run; "" for a run from Python."""
        arguments = items(mapping(self.record, "command"), "arguments")
        return shlex.join(["kdkit", "run", *map(str, arguments)]) if arguments else ""

    @property
    def notices(self) -> list[str]:
        """The facts about the data and the networks that a reader must know."""
        return [str(notice) for notice in items(self.record, "notices")]

    def trains(self, stage: str, net: str) -> bool:
        """Return whether a stage trained a net. Without terms in the record, the name of the stage decides."""
        terms = terms_of(self.record).get(stage)
        return any(term.get("student_net") == net for term in terms) if terms else stage == net

    def weight(self, stage: str, label: str) -> str:
        """Return a text with the weight of a term; "" if it is unknown."""
        terms = [term for term in terms_of(self.record).get(stage, ()) if term.get("label") == label]
        return f"weight {weight_of(terms[0])}" if terms else ""

    def parameters(self, net: str) -> int | None:
        """Return the number of a net's parameters."""
        return whole_number(mapping(mapping(self.record, "nets"), net), "parameters")

    def differences(self, student: str, reference: str) -> tuple[BaselineDifference, ...]:
        """Return the difference of each metric between a student and another net, paired over the samples.

        Differences from a baseline are stored. Others are computed, if kdkit can compute the metric from predictions.
        """
        main = self.monitored_metric(student)
        stored = [row for row in self.metrics.differences if (row.student, row.baseline) == (student, reference)]
        if stored:
            return tuple(sorted(stored, key=lambda row: row.metric != main))  # the others keep their order
        pair = self.split(student), self.split(reference)
        if pair[0] is None or pair[1] is None:
            return ()
        computed = []
        for name, result in self.metrics.results[student].items():
            metric = same_metric(name, result, pair[0])
            if metric is None or name not in self.metrics.results[reference]:
                continue
            with suppress(DataError):  # the nets have other classes or samples
                difference = paired_bootstrap(metric, pair[0], pair[1], resamples=_RESAMPLES)
                computed.append(baseline_difference(student, reference, name, difference))
        return tuple(sorted(computed, key=lambda row: row.metric != main))


def _with_intervals(metrics: RunMetrics, reports: Mapping[str, NetReport]) -> RunMetrics:
    """Return the metrics, with bootstrap intervals added if they can be computed."""
    completed = {net: dict(results) for net, results in metrics.results.items()}
    for net, report in reports.items():
        validation, test = report.splits
        for name, result in metrics.results[net].items():
            if result.interval is not None or not math.isfinite(result.value):
                continue
            metric = same_metric(name, result, report.splits)
            if metric is not None:
                computed = BootstrapInterval(metric.fit(validation), resamples=_RESAMPLES).compute(test)
                completed[net][name] = replace(result, interval=computed.interval)
    return replace(metrics, results=completed)


def read_runs(folders: Sequence[Path]) -> tuple[tuple[ReportedRun, ...], tuple[str, ...]]:
    """Return the runs in these folders, and a sentence for each folder of several runs that has unfinished ones.

    A folder of several runs, such as a study, adds all of its runs that can be read; a sentence names the studies in
    it. Raises RunFolderError if a folder has no finished run.
    """
    paths: dict[Path, list[Path]] = {}  # the runs in each folder
    left_out = []
    for folder in folders:
        names = [] if (folder / "run.json").exists() else sorted(runs_in(folder), key=_by_numbers)
        paths[folder] = [folder / name for name in names] or [folder]
        if studies := [path for path in sorted(folder.glob("*/")) if names and runs_in(path)]:
            of = describe_names(path.name for path in studies)
            left_out.append(f"the runs in {of} of {folder} are left out; for their report, pass {studies[0]}")
    # A run that is named twice is shown once, also if one of the paths is absolute or a link.
    unique: dict[Path, Path] = {}
    for path in chain.from_iterable(paths.values()):
        unique.setdefault(path.resolve(), path)
    runs: dict[Path, ReportedRun] = {}
    errors: dict[Path, KdkitError] = {}
    for (resolved, path), label in zip(unique.items(), _distinct_names([*unique]), strict=True):
        try:
            runs[resolved] = ReportedRun.read(path, label)
        except KdkitError as error:
            errors[resolved] = error
    for folder, inside in paths.items():
        reasons = [str(errors[resolved]) for path in inside if (resolved := path.resolve()) in errors]
        if len(reasons) == len(inside):
            raise errors[inside[0].resolve()]
        if reasons:
            more = [f"and {len(reasons) - 3} more"] if len(reasons) > 3 else []
            verb = "is" if len(reasons) == 1 else "are"
            left_out.append(
                f"{len(reasons)} of the {len(inside)} runs in {folder} {verb} left out: "
                f"{'; '.join([*reasons[:3], *more])}"
            )
    return tuple(runs.values()), tuple(left_out)


def _by_numbers(name: str) -> list[Any]:
    """Return a key that sorts seed=2 before seed=10: texts and numbers in turn."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def nets_by_role(run: ReportedRun) -> list[str]:
    """Return the nets of a run: students, their baselines, their teachers, and the others."""
    # `sorted` is stable, so nets with the same role keep the order of the recipe
    return sorted(run.nets, key=lambda net: _ROLES.index(run.role(net)))


def terms_of(record: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the terms of each stage in the record of a run; empty if it has none."""
    terms = mapping(record, "terms")
    return {stage: rows(terms, stage) for stage in terms}


def matched_teachers(record: Mapping[str, Any], student: str) -> tuple[str, ...]:
    """Return the names of all teachers in the terms of a student, including those without metrics.

    The name of `Teachers`, "first and second", stands for its members.
    """
    of_student = [term for terms in terms_of(record).values() for term in terms if term.get("student_net") == student]
    nets, teachers = mapping(record, "nets"), dict[str, None]()
    for name in dict.fromkeys(str(term["teacher"]) for term in of_student if term.get("teacher")):
        members = name.split(" and ") if name not in nets else [name]
        teachers |= dict.fromkeys(members if all(member in nets for member in members) else [name])
    return tuple(teachers)


def weight_of(term: Mapping[str, Any]) -> str:
    """Return the weight of a term of a record, or its weights at the start and at the end of the stage."""
    weight = [f"{number_or(value, 0.0):.3g}" for value in items(term, "weight")]
    return weight_text(weight[0], weight[1], str(term.get("factors") or "")) if len(weight) == 2 else ""


def settings_digest(run: ReportedRun, average_over: Sequence[str]) -> str:
    """Return a digest of the settings of a run without its seed. Runs with the same digest are repetitions.

    average_over: other options to leave out.
    """
    keys = (
        *("recipe", "recipe_sha256", "options", "precision"),
        # These distinguish recipes from Python, which have no file and no options.
        *("stages", "nets", "terms", "trainings", "monitors", "draws", "teacher_cache"),
    )
    # with the nets, because runs with and without a baseline have different verdicts
    metrics = {net: list(results) for net, results in run.metrics.results.items()}
    options = {name: value for name, value in mapping(run.record, "options").items() if name not in average_over}
    settings = [{**run.record, "options": options}.get(key) for key in keys]
    # Without the digest of its rows, because weights may depend on a split that differs between seeds.
    sampler = str(run.record.get("sampler")).partition(" (")[0]
    text = repr([*settings, sampler, metrics])
    text = without_addresses(text)  # in the repr of user-defined losses
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return distinct names for different absolute paths: of each its own, with as many parent folders as needed."""
    parts = [path.parts for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
