"""Check a whole recipe without training it, and return its plan."""

from collections.abc import Callable
from typing import Any

import torch

from kdkit.engine.batch_transform import transformed
from kdkit.engine.check.batches import batch_problems
from kdkit.engine.check.dry_run import dry_run
from kdkit.engine.check.estimate import Estimator, StageEstimate
from kdkit.engine.check.plan import Plan, TermSummary
from kdkit.engine.check.recipe_problems import recipe_problems
from kdkit.engine.check.stage_problems import stage_problems
from kdkit.engine.open_stage import OpenStage, build_context, tiny_batch
from kdkit.engine.options import RunOptions
from kdkit.errors import KdkitError, first_line
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe, as_recipe, nets_of
from kdkit.utils import memory
from kdkit.utils.devices import Precision
from kdkit.utils.memory import is_out_of_memory


def check(
    recipe: Recipe | Callable[[], Recipe],
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    *,
    estimate: RunOptions | None = None,
) -> Plan:
    """Return the plan of a recipe, from one forward pass per stage on a tiny batch. Nothing is trained.

    recipe: or a function that returns one, as for `run`.
    Networks are moved to `device` and otherwise left as they were; losses with parameters are built.
    estimate: the options of the run that is planned, to add `Plan.estimates`, which take about a second: multiply-adds,
    the time of an epoch, and cached teacher outputs. Its device and precision must be those of the check.
    All problems are collected in `Plan.problems`. Raises only if the data cannot be read or the schedule fails.
    """
    recipe = as_recipe(recipe, "check")
    stages = recipe.stages
    context = build_context(recipe.data)
    problems = [*recipe_problems(recipe, stages)]
    terms: list[tuple[TermSummary, ...]] = []
    feature_teachers: set[Net[Any]] = set()
    notices: list[str] = []
    peaks: list[int | None] = []
    estimator = None if estimate is None else Estimator(recipe, stages, estimate)
    estimates: list[StageEstimate | None] = []
    reported: set[str] = set()
    for stage in stages:
        summaries: tuple[TermSummary, ...] = ()
        peak: int | None = None
        estimated: StageEstimate | None = None
        stage_errors = [*stage_problems(stage, context)]
        if not stage_errors:  # a stage with a static problem might fail in a dry run for the same reason
            untransformed = tiny_batch(recipe.data, stage.training.batch_size).to(torch.device(device))
            memory.reset_peak(untransformed.labels.device)
            try:
                batch = transformed(recipe.data, untransformed)
                for net in nets_of([stage]):
                    net.move_to(batch.labels.device)
                with OpenStage(stage, context, batch.labels.device) as open_stage:
                    report = dry_run(open_stage, batch, precision, update=True)
                    peak = memory.peak(batch.labels.device)
                    if not report.problems:
                        report.problems += batch_problems(open_stage, recipe.data, untransformed, precision)
                    if estimator is not None and not report.problems:
                        estimated = estimator.estimate(open_stage, batch, untransformed)
                stage_errors, summaries = report.problems, tuple(report.terms)
                feature_teachers.update(report.feature_teachers)
                notices += report.notices
            except KdkitError as error:
                stage_errors = [str(error)]
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                use = memory.describe_use(untransformed.labels.device)
                stage_errors = [f"it does not fit into memory, without any gradient; {use} ({first_line(error)})"]
        # A net that fails in the stage that trains it fails as a teacher of later stages too.
        problems += [f"stage {stage.name!r}: {problem}" for problem in stage_errors if problem not in reported]
        reported.update(stage_errors)
        terms.append(summaries)
        peaks.append(peak)
        estimates.append(estimated)
    return Plan(
        stages=stages,
        terms=tuple(terms),
        problems=tuple(dict.fromkeys(problems)),  # outputs are checked in training and in eval mode
        context=context,
        peak_memory_bytes=tuple(peaks),
        feature_teachers=frozenset(feature_teachers),
        estimates=tuple(estimates),
        notices=tuple(dict.fromkeys(notices)),
    )
