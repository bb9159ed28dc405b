"""Evaluate the networks at the end of a run: predict both splits, and compute and save the metrics."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kdkit.data.dataset import Split, reported_split
from kdkit.engine.baseline_differences import baseline_differences
from kdkit.engine.failures.user_errors import located
from kdkit.engine.predict import Predictor, add_note, compute_metrics, note_on_classes
from kdkit.engine.run_context import RunContext
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.errors import RunFolderError, first_line
from kdkit.metrics.base import Metric, MetricResult, Predictions, is_better
from kdkit.metrics.likelihood import hardest_samples
from kdkit.metrics.paired import SplitPredictions
from kdkit.nets.net import Net
from kdkit.plugins.events import BaselineDifference
from kdkit.recipe.baseline import baselines_of
from kdkit.recipe.recipe import Stage, teachers_of, weighted_terms
from kdkit.utils.randomness import seed_everything
from kdkit.utils.seeds import SeedPurpose, derive_seed

_REPORTED_SAMPLES = 12
_CLEARLY_WORSE = 0.02  # a relative difference between two metrics that is hardly due to chance


class RunEvaluation:
    """The metrics of a run's networks.

    metrics, differences: see `Result`; empty before `evaluate`, which adds one network after another.
    reported_on: the split of the metrics. student: the network that is trained last.
    """

    def __init__(self, ctx: RunContext, folder: RunFolder) -> None:
        self.ctx = ctx
        self.folder = folder
        self.predictor = Predictor(ctx.recipe.data, ctx.device_data, ctx.options.precision, ctx.recipe.metrics)
        self.metrics: dict[str, dict[str, MetricResult]] = {}
        self.differences: tuple[BaselineDifference, ...] = ()
        self.reported_on, _ = reported_split(ctx.recipe.data)
        self.student = next(list(stage.objectives)[-1] for stage in reversed(ctx.plan.stages) if not stage.baseline_of)
        self._compared: dict[str, SplitPredictions] = {}  # of students with a baseline, and of their baselines
        self._test_of_student: Predictions | None = None
        self._lacks_classes: set[str] = set()  # names of networks whose metrics leave out classes

    def evaluate(self) -> None:
        """Compute and save the metrics of every network, and the differences between students and their baselines."""
        ctx, stages, metrics = self.ctx, self.ctx.plan.stages, self.ctx.recipe.metrics
        for number, net in enumerate(ctx.plan.nets):
            if net in ctx.plan.without_metrics:
                continue
            # If data or networks draw random numbers, a resumed run draws the same ones.
            seed_everything(derive_seed(ctx.options.seed, number, SeedPurpose.EVALUATION, 0))
            with located(f"the evaluation of net {net.name!r}", ctx.options.out):
                self.metrics[net.name] = self._evaluate(net)
            # After each network, so that a run that fails later keeps these metrics.
            self.folder.save_metrics(self.reported_on, self.metrics, complete=False)
        self._save_samples()
        comparable = {name: results for name, results in self.metrics.items() if name not in self._lacks_classes}
        _note_weak_teachers(comparable, stages, metrics[0], self.reported_on)
        self._note_equal_labels()
        self.differences = tuple(baseline_differences(metrics, stages, self._compared))
        self.folder.save_metrics(self.reported_on, self.metrics, self.differences)

    def _evaluate(self, net: Net[Any]) -> dict[str, MetricResult]:
        """Predict the validation and test splits, save the predictions, and return the metrics of a network."""
        ctx, data, stages = self.ctx, self.ctx.recipe.data, self.ctx.plan.stages
        # The last stage that trains the network, or the last stage of all if it is only a teacher.
        index = max((index for index, stage in enumerate(stages) if net in stage.objectives), default=-1)
        with ctx.explain_out_of_memory(stages[index], data.validation, trains=False):
            predictions = self.predictor.predict_splits(net, batch_size=stages[index].training.batch_size)
        # The folder of a network that is only a teacher is "0-<name>".
        folder = self.folder.stage(index, net.name if index < 0 else stages[index].name)
        folder.save_predictions(net.name, "validation", predictions.validation)
        if data.test is not None:
            folder.save_predictions(net.name, "test", predictions.test)
        if net is self.student:
            self._test_of_student = predictions.test
        baselines = baselines_of(stages)
        if net.name in {*baselines, *baselines.values()}:
            self._compared[net.name] = predictions
        results = compute_metrics(ctx.recipe.metrics, *predictions)
        if note := note_on_classes(net, data, predictions.test):
            add_note(results, note)
        if len(predictions.test.classes) < len(data.classes):
            self._lacks_classes.add(net.name)
        return results

    def _note_equal_labels(self) -> None:
        """Add a note to the first metric of the student if all samples have the same label, such as only positives."""
        predictions = self._test_of_student
        if self.ctx.recipe.data.task == "regression" or predictions is None or predictions.per_position:
            return
        labels = predictions.labels
        if len(labels) > 1 and (labels == labels[0]).all():
            note = (
                f"all {len(labels)} labels of the {self.reported_on} split are alike, so a network that always returns "
                "the same may have the best metrics"
            )
            add_note(self.metrics[self.student.name], note)

    def _save_samples(self) -> None:
        """Save the samples that the student got most wrong, if the data can be shown in a report."""
        _, split = reported_split(self.ctx.recipe.data)
        predictions = self._test_of_student
        if not self.folder.writes or not isinstance(split, Split) or predictions is None or predictions.ids is None:
            return
        # By ids, because predictions have no rows for samples without a label.
        row_of = {number: row for row, number in enumerate(split.ids.tolist())}
        ids = predictions.ids[hardest_samples(predictions, _REPORTED_SAMPLES)]
        rows = torch.tensor([row_of[number] for number in ids.tolist()], dtype=torch.long)
        try:
            tensors = split.report_tensors(rows) if len(rows) else {}
            if tensors:
                self.folder.save_samples(split.ids[rows], tensors, split.report_names(rows))
        except RunFolderError:
            raise
        except Exception as error:  # user-defined data may raise anything, and a report can do without the samples
            warnings.warn(
                f"the samples for the report could not be saved: {type(error).__name__}: {first_line(error)}",
                stacklevel=2,
            )


def _note_weak_teachers(
    metrics: Mapping[str, dict[str, MetricResult]], stages: Sequence[Stage], metric: Metric, split: str
) -> None:
    """Add a note to the metric of each frozen teacher that is clearly worse than its student, or than its baseline.

    metrics: by names of network and metric. split: the one that they were computed on.
    """
    pairs = {
        (teacher.name, student.name): None
        for stage in stages
        for student, weighted in weighted_terms(stage)
        if weighted.has_weight
        for teacher in teachers_of(weighted.term)
        if isinstance(teacher, Net)
    }
    baselines = baselines_of(stages)
    for teacher, student in pairs:
        for net in filter(None, (student, baselines.get(student))):
            results = [metrics.get(name, {}).get(metric.name) for name in (teacher, net)]
            if results[0] is None or results[1] is None or not is_better(metric, results[1].value, results[0].value):
                continue
            values = results[0].value, results[1].value
            if abs(values[0] - values[1]) > _CLEARLY_WORSE * max(map(abs, values)):
                better = f"its student {net!r}" if net == student else repr(net)
                note = (
                    f"{metric.name} of teacher {teacher!r} on {split}, {values[0]:.3g}, is worse than that of "
                    f"{better}, {values[1]:.3g}: a better teacher may help more"
                )
                add_note(metrics[teacher], note, metric.name)
                break
