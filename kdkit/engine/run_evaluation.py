"""Evaluate the networks of a run at its end: predict both splits, and compute and save the metrics."""

from typing import Any

import torch

from kdkit.data.dataset import Split
from kdkit.engine.baseline_differences import baseline_differences
from kdkit.engine.predict import compute_metrics
from kdkit.engine.run_context import RunContext
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.engine.user_errors import located
from kdkit.engine.weak_teachers import note_weak_teachers
from kdkit.metrics.base import MetricResult, Predictions
from kdkit.metrics.likelihood import hardest_samples
from kdkit.metrics.paired import SplitPredictions
from kdkit.nets.net import Net
from kdkit.plugins.events import BaselineDifference
from kdkit.recipe.baseline import baselines_of
from kdkit.utils.randomness import seed_everything
from kdkit.utils.seeds import SeedPurpose, derive_seed

_REPORTED_SAMPLES = 12


class RunEvaluation:
    """The metrics of the networks of a run. folder: None to keep nothing on disk.

    metrics, differences: see `Result`; empty before `evaluate`, which fills in one network after the other.
    reported_on: the split of the metrics. student: the network that is trained last.
    """

    def __init__(self, ctx: RunContext, folder: RunFolder | None) -> None:
        self.ctx = ctx
        self.folder = folder
        self.metrics: dict[str, dict[str, MetricResult]] = {}
        self.differences: tuple[BaselineDifference, ...] = ()
        self.reported_on = "validation" if ctx.recipe.data.test is None else "test"
        self.student = next(list(stage.objectives)[-1] for stage in reversed(ctx.plan.stages) if not stage.baseline_of)
        self._compared: dict[str, SplitPredictions] = {}  # the predictions of students that have a baseline, and of it
        self._test_of_student: Predictions | None = None

    def evaluate(self) -> None:
        """Compute the metrics of every network, and the differences of students from their baselines, and save them."""
        ctx, stages, metrics = self.ctx, self.ctx.plan.stages, self.ctx.recipe.metrics
        for number, net in enumerate(ctx.plan.nets):
            if net in ctx.plan.feature_teachers:  # whose outputs are not about the classes
                continue
            # A resumed run draws the same numbers, if data or networks draw any.
            seed_everything(derive_seed(ctx.options.seed, number, SeedPurpose.EVALUATION, 0))
            with located(f"the evaluation of net {net.name!r}", ctx.options.out):
                self.metrics[net.name] = self._evaluate(net)
            if self.folder is not None:  # after each network, so that a run that fails later keeps what it has
                self.folder.save_metrics(self.reported_on, self.metrics)
        self._save_samples()
        has_notes = note_weak_teachers(self.metrics, stages, metrics[0], self.reported_on)
        self.differences = tuple(baseline_differences(metrics, stages, self._compared))
        if self.folder is not None and (self.differences or has_notes):
            self.folder.save_metrics(self.reported_on, self.metrics, self.differences)

    def _evaluate(self, net: Net[Any]) -> dict[str, MetricResult]:
        """Predict the validation and test splits, save the predictions, and return the metrics of a network."""
        ctx, data = self.ctx, self.ctx.recipe.data
        # The last stage that trains the network holds its files; one that is only a teacher gets a folder "0-<name>".
        index, name, batch_size = next(
            (
                (index, stage.name, stage.training.batch_size)
                for index, stage in reversed(list(enumerate(ctx.plan.stages)))
                if net in stage.objectives
            ),
            (-1, net.name, ctx.plan.stages[-1].training.batch_size),
        )
        with ctx.explain_out_of_memory(ctx.plan.stages[index], data.validation, trains=False):
            predictions = ctx.predictor.predict_splits(net, batch_size=batch_size)
        if self.folder is not None:
            folder = self.folder.stage(index, name)
            folder.save_predictions(net.name, "validation", predictions.validation)
            if data.test is not None:
                folder.save_predictions(net.name, "test", predictions.test)
        if net is self.student:
            self._test_of_student = predictions.test
        baselines = baselines_of(ctx.plan.stages)
        if net.name in {*baselines, *baselines.values()}:
            self._compared[net.name] = predictions
        return compute_metrics(ctx.recipe.metrics, *predictions)

    def _save_samples(self) -> None:
        """Save the samples that the student got most wrong, as far as the data can be shown in a report."""
        split = self.ctx.recipe.data.validation if self.reported_on == "validation" else self.ctx.recipe.data.test
        predictions = self._test_of_student
        if self.folder is None or predictions is None or predictions.ids is None or not isinstance(split, Split):
            return
        # By their ids, since predictions have no rows for samples without a label.
        row_of = {number: row for row, number in enumerate(split.ids.tolist())}
        ids = predictions.ids[hardest_samples(predictions, _REPORTED_SAMPLES)]
        rows = torch.tensor([row_of[number] for number in ids.tolist()], dtype=torch.long)
        tensors = split.report_tensors(rows) if len(rows) else {}
        if tensors:
            self.folder.save_samples(split.ids[rows], tensors, split.report_names(rows))
