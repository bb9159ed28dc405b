"""Check a whole recipe without training it, and return its plan."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kdkit.data.dataset import LoaderSplit, Split, require_splits
from kdkit.data.label_check import LabelCheck
from kdkit.data.loading import batches
from kdkit.data.reading import ReadBatches
from kdkit.data.torch_splits import StreamSplit
from kdkit.engine.check.dry_run import dry_run
from kdkit.engine.check.estimate import Estimator, StageEstimate
from kdkit.engine.check.notices import recipe_notices, run_notices
from kdkit.engine.check.output_problems import feature_teachers
from kdkit.engine.check.plan import Plan, StagePlan, TermSummary
from kdkit.engine.check.recipe_problems import recipe_problems
from kdkit.engine.check.stage_problems import stage_problems, storage_problems
from kdkit.engine.check.step_problems import batch_problems, update_problems
from kdkit.engine.check.validation_problems import validation_problems
from kdkit.engine.options import RunOptions
from kdkit.engine.stage.batch_transform import transformed
from kdkit.engine.stage.open_stage import OpenStage, build_context, tiny_batch
from kdkit.errors import DataError, KdkitError, first_line
from kdkit.losses.base import BuildContext
from kdkit.metrics.base import takes_any_outputs
from kdkit.metrics.bootstrap import without_interval
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe, Stage, as_recipe, nets_of
from kdkit.utils import memory
from kdkit.utils.collectives import without_messages
from kdkit.utils.devices import Precision, default_modes
from kdkit.utils.memory import is_out_of_memory
from kdkit.utils.randomness import exclusive_rng_state

_READ = 4  # samples of a batch of evaluated data


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
    with without_messages(), default_modes(), exclusive_rng_state(cuda=device.type == "cuda" or None):
        recipe = as_recipe(recipe, "check")
        require_splits(recipe.data)
        recipe = recipe.with_stages(recipe.stages)  # a schedule may create other stages in its next call
        context = build_context(recipe.data)
        problems = [*recipe_problems(recipe, context), *_problems_of_samples(recipe)]
        estimator = None if estimate is None else Estimator(recipe, estimate)
        checks = [_check_stage(recipe, stage, context, device, precision, estimator) for stage in recipe.stages]
    reported = {*problems}  # test data that cannot be read
    for item in checks:
        # A net that fails in the stage that trains it also fails as a teacher in later stages.
        new = [problem for problem in item.problems if problem not in reported]
        problems += [f"stage {item.stage.name!r}: {problem}" for problem in new]
        reported.update(new)
    problems += _baseline_problems(checks)
    # A net that a stage trains has been validated by its metrics, which may be of packed outputs of any shape.
    trained = {net for stage in recipe.stages for net in stage.objectives}
    without = {net: notice for item in checks for net, notice in item.without_metrics.items() if net not in trained}
    return Plan(
        stage_plans=tuple(item.plan() for item in checks),
        problems=tuple(dict.fromkeys(problems)),  # outputs are checked both in training and in eval mode
        context=context,
        without_metrics=frozenset(without),
        notices=(
            *dict.fromkeys(notice for item in checks for notice in item.notices),
            *recipe_notices(recipe),
            *without.values(),
        ),
        loader_batch=next((item.loader_batch for item in checks if item.loader_batch is not None), None),
    )


@dataclass(slots=True)
class _StageCheck:
    """The result of checking one stage.

    without_metrics: teachers that have none, with a notice that says why. untrained_outputs, untrained_weights: see
    `Facts`; other fields: see `Plan` and `StagePlan`.
    """

    stage: Stage
    problems: list[str]
    notices: list[str] = field(default_factory=list)
    terms: list[TermSummary] = field(default_factory=list)
    without_metrics: dict[Net[Any], str] = field(default_factory=dict)
    untrained_outputs: bool = False
    untrained_weights: dict[str, set[Tensor]] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    estimate: StageEstimate | None = None
    loader_batch: int | None = None

    def plan(self) -> StagePlan:
        """Return the plan of the stage, with `keep` set to "best" or "last" if the user left it out."""
        training = self.stage.training
        if training.keep is None and self.untrained_outputs:
            training = replace(
                training, keep="last", patience=None
            )  # patience needs a metric, which means nothing here
        elif training.keep is None:
            training = replace(training, keep="best")
        return StagePlan(
            stage=replace(self.stage, training=training),
            terms=tuple(self.terms),
            peak_memory_bytes=self.peak_memory_bytes,
            estimate=self.estimate,
        )


def _check_stage(
    recipe: Recipe,
    stage: Stage,
    context: BuildContext,
    device: torch.device,
    precision: Precision,
    estimator: Estimator | None,
) -> _StageCheck:
    """Return the result of checking one stage. Each check needs the earlier ones to find no problem."""
    result = _StageCheck(stage, stage_problems(stage, context) or [*storage_problems(stage)])
    data = recipe.data
    loader = data.train.loader if isinstance(data.train, LoaderSplit) else None
    has_batches = loader is not None and not isinstance(data.train, StreamSplit)
    if result.problems:
        result.loader_batch = getattr(loader, "batch_size", None) if has_batches else None
        return result
    untransformed = tiny_batch(data, stage.training.batch_size).to(device)
    validation = tiny_batch(data, stage.training.batch_size, data.validation)
    if has_batches:
        result.loader_batch = len(untransformed)
    device = untransformed.labels.device  # this one has its index, such as cuda:0
    memory.reset_peak(device)
    try:
        for net in nets_of([stage]):  # before the batch_transform, which may use a student to generate text
            net.move_to(device)
        batch = transformed(data, untransformed)
        with OpenStage(stage, context, device, precision) as open_stage:
            facts = dry_run(open_stage, batch)
            result.notices, result.terms = facts.notices, facts.terms
            result.untrained_outputs, result.untrained_weights = facts.untrained_outputs, facts.untrained_weights
            if not all(takes_any_outputs(without_interval(metric)) for metric in recipe.metrics):
                reason = "its outputs are not about the data's classes"
                if context.task == "regression":
                    reason = "its outputs have the shape neither of those of a student nor of the labels"
                result.without_metrics = {
                    net: f"net {net.name!r} has no metrics: {reason}" for net in feature_teachers(facts)
                }
            result.problems = facts.problems or [*update_problems(facts)]
            result.peak_memory_bytes = memory.peak(device)
            if not result.problems:
                result.problems += batch_problems(open_stage, data, untransformed)
            if not result.problems:
                result.notices += run_notices(facts, recipe, validation)
                if estimator is not None:
                    result.estimate = estimator.estimate(open_stage, batch, untransformed)
        if not result.problems:
            test = None if data.test is None else tiny_batch(data, stage.training.batch_size, data.test).to(device)
            batches = batch, validation.to(device), test
            for net in nets_of([stage]):
                if net in result.without_metrics:
                    continue
                reasons = [*validation_problems(net, recipe, context, batches, precision)]
                if net in stage.objectives:
                    result.problems += reasons
                elif reasons:  # it can still teach
                    result.without_metrics[net] = "; ".join([*reasons, "it teaches, but has no metrics"])
    except KdkitError as error:
        result.problems = [str(error)]
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        use = memory.describe_use(device)
        result.problems = [f"a step with a few samples does not fit into memory; {use} ({first_line(error)})"]
    return result


def _problems_of_samples(recipe: Recipe) -> Iterator[str]:
    """Yield the errors of reading some samples together that a run reads in one batch.

    These are the first and the last training sample, and some samples in the first and in the last batch of the
    validation and test data, which a run would otherwise read only after the training.
    """
    data, sizes = recipe.data, [stage.training.batch_size for stage in recipe.stages] or [1]
    train, together = data.train, list[tuple[Split, Tensor]]()
    if isinstance(train, Split) and min(len(train), max(sizes)) > 1 and train.lengths is None and train.sampler is None:
        together.append((train, torch.tensor([0, len(train) - 1])))  # in a random order, any two may be in one batch
    for split in (data.validation, data.test):
        if isinstance(split, Split) and len(split):
            count, size = len(split), sizes[-1]
            together.append((split, torch.arange(min(size, _READ, count))))
            together.append((split, torch.arange(max((count - 1) // size * size, count - _READ), count)))
    for split, rows in together:
        try:
            ReadBatches(batches(split, len(rows), order=rows), LabelCheck.of_data(data, split)).take(1)
        except DataError as error:
            yield str(error)


def _baseline_problems(checks: Sequence[_StageCheck]) -> Iterator[str]:
    """Yield the losses of baselines that use the network of the student: a baseline trains a copy of it."""
    stages = {item.stage.name: item.stage for item in checks}
    for item in checks:
        distilled = stages.get(item.stage.baseline_of)
        nets = () if distilled is None else distilled.objectives
        weights = {parameter for net in nets for parameter in net.network.parameters()}
        for label, untrained in item.untrained_weights.items():
            if untrained & weights:
                yield (
                    f"stage {item.stage.name!r}: term {label!r}: its loss uses the weights of the student, but a "
                    "baseline trains a copy of them; make the loss an object that holds the module, which is copied "
                    "with it, instead of a function that refers to the module, or run without the baseline"
                )
