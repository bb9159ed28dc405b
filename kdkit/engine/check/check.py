"""Check a whole recipe without training it, and return its plan."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from kdkit.data.dataset import LoaderSplit, require_splits
from kdkit.data.torch_splits import StreamSplit
from kdkit.engine.check.dry_run import DryRunReport, dry_run
from kdkit.engine.check.estimate import Estimator, StageEstimate
from kdkit.engine.check.metric_problem import number_metric_problems
from kdkit.engine.check.notices import copied_labels_notice, shared_net_notices, stage_notices
from kdkit.engine.check.plan import Plan
from kdkit.engine.check.recipe_problems import recipe_problems
from kdkit.engine.check.stage_problems import stage_problems, storage_problems
from kdkit.engine.check.step_problems import batch_problems
from kdkit.engine.options import RunOptions
from kdkit.engine.stage.batch_transform import transformed
from kdkit.engine.stage.open_stage import OpenStage, build_context, tiny_batch
from kdkit.errors import KdkitError, first_line
from kdkit.losses.base import BuildContext
from kdkit.recipe.recipe import Recipe, Stage, as_recipe, nets_of
from kdkit.recipe.training import Training
from kdkit.utils import memory
from kdkit.utils.collectives import without_messages
from kdkit.utils.devices import Precision, default_modes
from kdkit.utils.memory import is_out_of_memory


def check(
    recipe: Recipe | Callable[[], Recipe],
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    *,
    estimate: RunOptions | None = None,
) -> Plan:
    """Return the plan of a recipe, from one forward pass per stage on a tiny batch. Nothing is trained.

    Networks are moved to `device` and are otherwise unchanged; losses with parameters are built.
    recipe: a Recipe, or a function that returns one, as for `run`.
    estimate: the options of the planned run. If passed, `Plan.estimates` holds the multiply-adds, the time of an epoch
    and the cached teacher outputs, which takes about a second. Device and precision must be the same as in the check.
    All problems are collected in `Plan.problems`. Raises only if the data cannot be read or the schedule fails.
    In a run with several ranks, each rank may call this alone.
    """
    device = torch.device(device)
    with without_messages(), default_modes():
        recipe = as_recipe(recipe, "check")
        require_splits(recipe.data)
        context, stages = build_context(recipe.data), recipe.stages
        problems = [*recipe_problems(recipe, stages, context)]
        estimator = None if estimate is None else Estimator(recipe, stages, estimate)
        checks = [_check_stage(recipe, stage, context, device, precision, estimator) for stage in stages]
    reported: set[str] = set()
    for stage, stage_check in zip(stages, checks, strict=True):
        # A net that fails in the stage that trains it also fails as a teacher in later stages.
        new = [problem for problem in stage_check.report.problems if problem not in reported]
        problems += [f"stage {stage.name!r}: {problem}" for problem in new]
        reported.update(new)
    feature_teachers = {net for stage_check in checks for net in stage_check.report.feature_teachers}
    return Plan(
        stages=tuple(
            replace(stage, training=_with_keep(stage.training, stage_check.report))
            for stage, stage_check in zip(stages, checks, strict=True)
        ),
        terms=tuple(tuple(stage_check.report.terms) for stage_check in checks),
        problems=tuple(dict.fromkeys(problems)),  # outputs are checked both in training and in eval mode
        context=context,
        peak_memory_bytes=tuple(stage_check.peak_memory_bytes for stage_check in checks),
        # A net that a stage trains has been validated by its metrics, which may be of packed outputs of any shape.
        feature_teachers=frozenset(feature_teachers.difference(*(stage.objectives for stage in stages))),
        estimates=tuple(stage_check.estimate for stage_check in checks),
        notices=(
            *dict.fromkeys(notice for stage_check in checks for notice in stage_check.report.notices),
            *shared_net_notices(stages),
        ),
        loader_batch=next((item.loader_batch for item in checks if item.loader_batch is not None), None),
    )


def _with_keep(training: Training, report: DryRunReport) -> Training:
    """Return the options of a stage with `keep` set to "best" or "last" if the user left it out."""
    if training.keep is not None:
        return training
    if report.untrained_outputs:
        return replace(training, keep="last", patience=None)  # patience needs a metric, which means nothing here
    return replace(training, keep="best")


class _StageCheck(NamedTuple):
    """The result of checking one stage.

    peak_memory_bytes, estimate: None if a problem ended the check first. loader_batch: see `Plan`.
    """

    report: DryRunReport
    peak_memory_bytes: int | None = None
    estimate: StageEstimate | None = None
    loader_batch: int | None = None


def _check_stage(
    recipe: Recipe,
    stage: Stage,
    context: BuildContext,
    device: torch.device,
    precision: Precision,
    estimator: Estimator | None,
) -> _StageCheck:
    problems = [*stage_problems(stage, context)] or [*storage_problems(stage)]
    if problems:  # a dry run might fail for the same reason
        return _StageCheck(DryRunReport(problems))
    untransformed = tiny_batch(recipe.data, stage.training.batch_size).to(device)
    device = untransformed.labels.device  # this one has its index, such as cuda:0
    memory.reset_peak(device)
    peak: int | None = None
    estimate: StageEstimate | None = None
    try:
        for net in nets_of([stage]):  # before the batch_transform, which may use a student to generate text
            net.move_to(device)
        batch = transformed(recipe.data, untransformed)
        with OpenStage(stage, context, device) as open_stage:
            report = dry_run(open_stage, batch, precision, update=True)
            peak = memory.peak(device)
            notice = copied_labels_notice(stage, batch, context, has_metrics=True)
            report.notices += [] if notice is None else [notice]
            if not report.problems and context.task == "regression" and context.has_labels:
                report.problems += number_metric_problems(recipe.metrics, report.outputs, batch.labels, context.classes)
            if not report.problems:
                report.problems += batch_problems(open_stage, recipe.data, untransformed, precision)
            if not report.problems:
                report.notices += stage_notices(stage, recipe.data, report)
            if estimator is not None and not report.problems:
                estimate = estimator.estimate(open_stage, batch, untransformed)
        yields_batches = isinstance(recipe.data.train, LoaderSplit) and not isinstance(recipe.data.train, StreamSplit)
        return _StageCheck(report, peak, estimate, len(untransformed) if yields_batches else None)
    except KdkitError as error:
        problem = str(error)
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        use = memory.describe_use(device)
        problem = f"it does not fit into memory, even without gradients; {use} ({first_line(error)})"
    return _StageCheck(DryRunReport([problem]), peak, estimate)
