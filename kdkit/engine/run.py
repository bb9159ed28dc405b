"""Run a recipe from its check to its table of scores."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from kdkit.engine import distributed
from kdkit.engine.callbacks import Callbacks
from kdkit.engine.check.check import check
from kdkit.engine.check.static import require_uncompiled
from kdkit.engine.options import RunOptions
from kdkit.engine.predict import Predictor, compute_metrics
from kdkit.engine.run_record import Origin, name_of, notices, record_of
from kdkit.engine.storage.run_folder import RunFolder, started
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.engine.teacher_caching import TeacherCaching
from kdkit.engine.trainer import RunContext, StageTrainer
from kdkit.errors import RecipeError, RunFolderError
from kdkit.metrics import MetricResult
from kdkit.nets.net import Net
from kdkit.plugins.events import RunEnded, RunStarted
from kdkit.plugins.manager import installed
from kdkit.recipe.recipe import Recipe, Stage, needs_of
from kdkit.utils import collectives
from kdkit.utils.randomness import preserve_rng_state, seed_everything


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a run: scores by net and score name, the nets themselves, and where its files are.

    student: the net that was trained last.
    history: for each stage, a dict per epoch with the means of its terms and its score on the selection split.
    reported_on: the split the scores come from: "test", or "validation" where the data has no test split.
    """

    metrics: Mapping[str, Mapping[str, MetricResult]]
    nets: Mapping[str, Net[Any]]
    student: Net[Any]
    history: Mapping[str, Sequence[Mapping[str, Any]]]
    reported_on: str
    folder: Path | None


def run(
    recipe: Recipe | Callable[[], Recipe],
    options: RunOptions | None = None,
    *,
    callbacks: Sequence[object] = (),
    origin: Origin | None = None,
    **given: Any,
) -> Result:
    """Run a recipe, or the recipe that a function returns once the seed is set.

    options, or its fields by keyword: see RunOptions. watchers: objects with watching hooks, beside those of installed
    plugins. The random states of Python, numpy and torch are the same afterwards as before. Of several processes, those
    that torchrun started or those of a process group that is there, each does its part; the first one tells watchers
    and keeps the run folder. One that torchrun started anew goes on with its folder.
    Raises CheckError before the first step, and before anything is written, where anything is wrong.
    """
    options = _options(options, given)
    with distributed.joined(), preserve_rng_state():
        options = _agreed(options)
        return _seeded(recipe, options, callbacks, origin or Origin())


def _seeded(
    recipe: Recipe | Callable[[], Recipe], options: RunOptions, callbacks: Sequence[object], origin: Origin
) -> Result:
    device = distributed.own_device(options.torch_device())
    if options.out is not None:
        if collectives.rank() == 0:
            RunFolder.require_usable(options.out, resume=options.resume)  # before any data is prepared
        collectives.broadcast(None)  # the others look at nothing that the first one writes by then
    seed_everything(options.seed)
    if not isinstance(recipe, Recipe):
        recipe = _made(recipe)
    recipe.require_unused()
    plan = check(recipe, device, options.precision)
    plan.require()
    distributed.require_shareable(recipe.data, [stage.training.batch_size for stage in plan.stages])
    if options.compile:
        require_uncompiled(plan.stages)
    place = RunContext(
        recipe=recipe,
        plan=plan,
        options=options,
        device=device,
        predictor=Predictor(recipe.data, device, lambda: options.autocast(device)),
        callbacks=Callbacks(installed().extended(callbacks), speaks=collectives.rank() == 0 and options.only is None),
        recording=TeacherCaching(recipe, plan.stages, options, device),
    )
    folder = _folder(place, origin)
    recipe.use()
    began = time.perf_counter()
    try:
        result = _run(place, folder, origin)
    except BaseException as error:
        place.recording.close(ended=False)
        place.callbacks.tell("run_ended", _ended(place, {}, time.perf_counter() - began, error))
        raise
    place.recording.close(ended=options.only is None)
    place.callbacks.tell("run_ended", _ended(place, result.metrics, time.perf_counter() - began))
    return result


def _run(place: RunContext, folder: RunFolder | None, origin: Origin) -> Result:
    stages = place.plan.stages
    place.callbacks.tell(
        "run_started",
        RunStarted(
            recipe=name_of(place.recipe, origin),
            stages=tuple(stage.name for stage in stages),
            device=str(place.device),
            seed=place.options.seed,
            folder=place.options.out,
            notices=(*notices(place.recipe, place.plan), *place.recording.notices()),
        ),
    )
    for net in place.plan.nets:
        if isinstance(net.module, nn.Module):
            net.module.to(place.device)
    history: dict[str, Sequence[Mapping[str, Any]]] = {}
    for index, stage in enumerate(stages):
        at = None if folder is None else folder.stage(index, stage.name)
        if _has_its_turn(place, stage, at, history):
            history[stage.name] = StageTrainer(place, index, stage, at).train()
    metrics: dict[str, dict[str, MetricResult]] = {}
    for net in place.plan.nets if place.options.only is None else ():
        if net not in place.plan.foreign:
            metrics[net.name] = _score(place, folder, net)
            if folder is not None:
                folder.save_metrics(_reported_on(place), metrics)
    return Result(
        metrics=metrics,
        nets={net.name: net for net in place.plan.nets},
        student=list(stages[-1].objectives)[-1],
        history=history,
        reported_on=_reported_on(place),
        folder=place.options.out,
    )


def _has_its_turn(place: RunContext, stage: Stage, at: StageFolder | None, over: Mapping[str, Any]) -> bool:
    """Whether a stage is to be trained, or taken up as it ended; over: the stages that are.

    Raises RunFolderError where what it needs is not there.
    """
    only = place.options.only
    if only is None or at is None or at.finished:
        return True
    missing = [name for name in needs_of(place.plan.stages)[stage.name] if name not in over]
    if stage.name in only and missing:
        raise RunFolderError(
            f"stage {stage.name!r} needs stage {missing[0]!r}, which is not finished in {at.path.parent}"
        )
    return stage.name in only


def _score(place: RunContext, folder: RunFolder | None, net: Net[Any]) -> dict[str, MetricResult]:
    """Score a net: what is to be chosen on the selection split, what is reported on the test split."""
    data = place.recipe.data
    size, at = next(
        (
            (stage.training.batch_size, (index, stage.name))
            for index, stage in reversed(list(enumerate(place.plan.stages)))
            if net in stage.objectives
        ),
        (place.plan.stages[-1].training.batch_size, (-1, net.name)),
    )
    validation = place.predictor.predict(net, data.validation, batch_size=size)
    test = validation if data.test is None else place.predictor.predict(net, data.test, batch_size=size)
    if folder is not None:
        stage_folder = folder.stage(*at)
        stage_folder.save_predictions(net.name, "validation", validation)
        if data.test is not None:
            stage_folder.save_predictions(net.name, "test", test)
    return compute_metrics(place.recipe.metrics, validation, test)


def _folder(place: RunContext, origin: Origin) -> RunFolder | None:
    options = place.options
    if options.out is None:
        return None
    if collectives.rank() > 0:
        return RunFolder(options.out, writes=False)
    record = record_of(place, origin)
    if options.resume:
        return RunFolder.reopen(options.out, record)
    return RunFolder.create(options.out, record, origin.file)


def _ended(
    place: RunContext,
    metrics: Mapping[str, Mapping[str, MetricResult]],
    seconds: float,
    error: BaseException | None = None,
) -> RunEnded:
    return RunEnded(
        metrics={net: dict(each) for net, each in metrics.items()},
        parameters={net.name: net.parameters for net in place.plan.nets},
        reported_on=_reported_on(place),
        folder=place.options.out,
        seconds=seconds,
        error=error,
    )


def _reported_on(place: RunContext) -> str:
    return "validation" if place.recipe.data.test is None else "test"


def _made(function: Callable[[], Recipe]) -> Recipe:
    made = function() if callable(function) else function
    if not isinstance(made, Recipe):
        raise RecipeError(
            f"run takes a kdkit.Recipe, or a function that returns one; got a {type(made).__name__}; "
            "a recipe file is run with `kdkit run FILE`"
        )
    return made


def _agreed(options: RunOptions) -> RunOptions:
    """Return the options with the folder that the first process chose, gone on with where it was started anew."""
    resume = options.resume
    if options.out is not None and not resume and distributed.restarted() and collectives.rank() == 0:
        resume = started(options.out)
    out, resume = collectives.broadcast((options.out, resume))
    return replace(options, out=out, resume=resume)


def _options(options: RunOptions | None, given: Mapping[str, Any]) -> RunOptions:
    if options is not None:
        if given:
            raise RecipeError(f"options are given as RunOptions or by keyword; got RunOptions and {', '.join(given)}")
        return options
    try:
        return RunOptions(**given)
    except TypeError as error:
        raise RecipeError(f"run takes the fields of RunOptions by keyword: {error}") from error
