"""Run a recipe: check it, train its stages, and compute the metrics of every network."""

import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Any, Unpack

import torch
from torch import nn

from kdkit.data.device_data import DeviceData
from kdkit.data.sample_names import name_digests
from kdkit.engine.callbacks import Callbacks
from kdkit.engine.check.check import check
from kdkit.engine.check.stage_problems import require_compilable, require_storable
from kdkit.engine.continued_nets import continued_nets, first_weights, mark_trained
from kdkit.engine.display.console import NoticeLog, progress_display
from kdkit.engine.distributed.data_parallel import require_divisible
from kdkit.engine.distributed.process_group import joined, rank_device, restarted
from kdkit.engine.distributed.rank_agreement import require_agreement
from kdkit.engine.failures.out_of_memory import explain_memory_of_run
from kdkit.engine.interrupts import Interrupts
from kdkit.engine.measurement.nets import measure_nets
from kdkit.engine.options import RunFields, RunOptions, require_fields, require_options
from kdkit.engine.run_context import RunContext
from kdkit.engine.run_evaluation import RunEvaluation
from kdkit.engine.run_record import Origin, notices, run_name, run_record, settings_of, versions
from kdkit.engine.stage.teacher_caching import TeacherCaching
from kdkit.engine.stage.training_batches import passes_over
from kdkit.engine.storage.run_folder import (
    NoRunFolder,
    RunFolder,
    can_resume,
    how_to_resume,
    is_in_study,
    was_killed_at_start,
)
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.engine.training.trainer import StageTrainer
from kdkit.errors import RecipeError, RunFolderError, describe
from kdkit.metrics.base import MetricResult
from kdkit.nets.net import Net
from kdkit.plugins.events import BaselineDifference, RunEnded, RunStarted
from kdkit.plugins.manager import installed
from kdkit.recipe.baseline import with_baselines
from kdkit.recipe.recipe import Recipe, Stage, as_recipe, stage_dependencies
from kdkit.recipe.recipe_code import arguments_of, code_of, source_file
from kdkit.utils import collectives
from kdkit.utils.devices import default_modes, deterministic
from kdkit.utils.paths import preserve_working_directory, working_directory
from kdkit.utils.randomness import exclusive_rng_state, seed_everything
from kdkit.utils.signatures import parameters_by_name

_INTERRUPTED = (
    "kdkit: the attribute `result` of this exception has the history, the networks and the metrics so far; in a "
    "notebook: sys.last_value.result"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a run, or of the part of it before an interrupt: see `kdkit.run`.

    metrics: by names of network and metric. nets: the networks by name. student: the network that is trained last.
    history: for each stage, an entry per epoch with the means of its terms and the monitored metric.
    reported_on: the split of the metrics: "test", or "validation" if the data has no test split.
    folder: the run folder, or None.
    differences: between each student and its baseline, for each metric, with RunOptions(baseline=True).
    """

    metrics: Mapping[str, Mapping[str, MetricResult]]
    nets: Mapping[str, Net[Any]]
    student: Net[Any]
    history: Mapping[str, Sequence[Mapping[str, Any]]]
    reported_on: str
    folder: Path | None
    differences: Sequence[BaselineDifference] = ()

    def __repr__(self) -> str:
        lines = [
            f"\n  {net}: {', '.join(f'{name} {result.value:.4g}' for name, result in results.items())}"
            for net, results in self.metrics.items()
        ]
        folder = "" if self.folder is None else f", in {str(self.folder)!r}"
        return (
            f"Result(student {self.student.name!r}{folder}), metrics on {self.reported_on}:{''.join(lines) or ' none'}"
        )


def run(
    recipe: Recipe | Callable[[], Recipe],
    options: RunOptions | None = None,
    *,
    callbacks: Sequence[object] = (),
    origin: Origin | None = None,
    **fields: Unpack[RunFields],
) -> Result:
    """Run a recipe, or the recipe that a function returns, which is called after the seed is set.

    options: a RunOptions; its fields can also be passed by keyword instead. callbacks: objects with callback hooks, in
    addition to those of installed plugins. The random states of Python, numpy and torch, and the working directory, are
    restored at the end. Threads share them, so a second thread in this function, `check`, `evaluate` or `export_net`
    waits for the first.

    Under torchrun, or if a process group is initialized, the ranks share the work. Only the first rank calls callbacks
    and writes the run folder. A rank that torchrun restarts resumes from that folder.

    Raises CheckError before the first step, and before anything is written, if the recipe has problems. A
    KeyboardInterrupt (Ctrl-C) while a stage is trained or evaluated has the Result so far in its attribute `result`:
    the history with the finished epochs, the networks with the weights of their best epoch, and the metrics of networks
    that are already evaluated.
    """
    require_options(options)
    if options is None:
        _require_no_arguments(recipe, fields)
        require_fields(run, fields, RunFields)
        options = RunOptions(**fields)
    elif fields:
        raise RecipeError(f"pass a RunOptions or its fields by keyword, not both; got {', '.join(fields)} as well")
    with prepared(recipe, options, callbacks=callbacks, origin=origin) as prepared_run:
        return prepared_run.execute()


@contextmanager
def prepared(
    recipe: Recipe | Callable[[], Recipe],
    options: RunOptions,
    *,
    callbacks: Sequence[object] = (),
    origin: Origin | None = None,
    requires_baseline: bool = True,
) -> Iterator["PreparedRun"]:
    """Check a recipe and open its run folder for a run in this context. Arguments and errors are those of `run`.

    requires_baseline: whether a recipe without distilled students is an error if the options ask for baselines. For a
    resumed run of a study it is not.
    """
    # Not validated in RunOptions, because a study sets `out` later.
    if options.keep_checkpoints and options.out is None:
        raise RecipeError("to keep checkpoints, pass the run folder: out=FOLDER")
    if not isinstance(callbacks, Iterable):
        raise RecipeError(f"callbacks must be a list, such as [CsvLogger()]; got {describe(callbacks)}")
    # A run on a CPU does not initialize CUDA. If user code has done so, the random state of the GPU is restored too.
    is_cuda = options.torch_device().type == "cuda"
    with default_modes(), joined(), exclusive_rng_state(cuda=is_cuda or None), preserve_working_directory():
        options = _agree_on_folder(options)
        device = rank_device(options.torch_device())
        if options.out is not None:
            if collectives.rank() == 0:
                RunFolder.require_usable(options.out, resume=options.resume)  # before any data is prepared
            collectives.broadcast(None)  # other ranks wait, so that none sees files that the first rank writes later
        display = progress_display(_calls_callbacks(options) and options.progress, verbose=options.verbose)
        with explain_memory_of_run(device), display as (status, console):
            # The networks are created in recipe(), so their initial weights depend on this seed.
            seed_everything(options.seed)
            if not isinstance(recipe, Recipe):
                origin = origin or _origin_in_notebook(recipe)
                status.show("preparing the data and the networks")
                before = working_directory()
                recipe = as_recipe(recipe, "run")
                if before is not None and working_directory() != before:  # recipe() changed it
                    options = _with_absolute_paths(options, Path(before))
            recipe.require_unused()
            if options.baseline:
                is_of_study = options.resume and options.out is not None and is_in_study(options.out)
                recipe = with_baselines(recipe, required=requires_baseline and not is_of_study)
            status.show("checking the recipe")
            callbacks = [*console, *callbacks]
            if options.progress is None and not console:
                callbacks.append(NoticeLog())
            interrupts = Interrupts(announce=console[0].announce if console else None)
            with interrupts, deterministic(enabled=options.deterministic):
                yield PreparedRun(recipe, options, device, callbacks, origin or Origin(), interrupts)


class PreparedRun:
    """A run of a recipe on one rank. Creating it checks everything, and `execute` trains.

    lock: the lock of the run folder, held until `execute` ends.
    """

    def __init__(
        self,
        recipe: Recipe,
        options: RunOptions,
        device: torch.device,
        callbacks: Sequence[object],
        origin: Origin,
        interrupts: Interrupts,
    ) -> None:
        plan = check(recipe, device, options.precision).with_seed(options.seed)
        plan.require()
        recipe = recipe.with_stages(plan.stages)  # a schedule may create other stages in its next call
        require_agreement(recipe, options, device, origin)
        require_divisible(recipe.data, [stage.training.batch_size for stage in recipe.stages])
        if options.compile:
            require_compilable(recipe.stages)
        if options.out is not None:
            require_storable(recipe.stages)
        device_data = DeviceData(
            device,
            share=options.device_data,
            draws=recipe.data.draws,
            passes=sum(passes_over(recipe.data.train, stage.training) for stage in recipe.stages),
        )
        self.ctx = RunContext(
            recipe=recipe,
            plan=plan,
            options=options,
            device=device,
            device_data=device_data,
            callbacks=Callbacks(installed().extended(callbacks).hook, enabled=_calls_callbacks(options)),
            interrupts=interrupts,
            teacher_caching=TeacherCaching(recipe, options, device),
        )
        self.origin = origin
        self.notices = (*notices(recipe, plan), *self._notices_of_continued_nets())
        self.lock = ExitStack()
        self.folder = self._open_folder()
        self.history: dict[str, Sequence[Mapping[str, Any]]] = {}
        self.evaluation = RunEvaluation(self.ctx, self.folder)

    def execute(self) -> Result:
        """Train and evaluate. Calls run_ended at the end, even after an error."""
        ctx = self.ctx
        ctx.recipe.mark_used()
        before = first_weights(ctx.recipe)
        began = time.perf_counter()
        try:
            with self.lock:
                self._train_and_evaluate()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                self._complete_interrupt(error)
            self._end(began, error)
            raise
        finally:
            with suppress(RuntimeError):  # after an error of a GPU, its tensors cannot be read
                mark_trained(ctx.recipe, before)
        self._end(began)
        return self._result()

    def _complete_interrupt(self, error: KeyboardInterrupt) -> None:
        """Add the result so far, and how to resume the run, to a KeyboardInterrupt."""
        # Not raised as a subclass, because Python exits with SIGINT, as a shell loop expects, for this class only.
        error.result = self._result()  # type: ignore[attr-defined]  # documented in `run`
        error.add_note(_INTERRUPTED)
        if self.ctx.options.out is not None:
            advice = how_to_resume(self.ctx.options.out, {"command": self.origin.command})
            error.add_note(f"kdkit: to resume the run: {advice}")
        # For the same reason: if tabulate is installed, torch imports it when Python exits, and its named tuples call
        # `exec`, which makes Python forget that it exits because of an interrupt. A second import calls nothing.
        with suppress(ImportError):
            importlib.import_module("tabulate")

    def _end(self, began: float, error: BaseException | None = None) -> None:
        """Close the teacher cache, and call run_ended. error: the one that ends the run."""
        evaluation, options = self.evaluation, self.ctx.options
        self.ctx.teacher_caching.location.close(ended=error is None and options.only is None)
        event = RunEnded(
            metrics={net: dict(results) for net, results in evaluation.metrics.items()} if error is None else {},
            parameters={net.name: net.parameters for net in self.ctx.plan.nets},
            reported_on=evaluation.reported_on,
            folder=options.out,
            seconds=time.perf_counter() - began,
            error=error,
            differences=evaluation.differences if error is None else (),
        )
        self.ctx.callbacks.call("run_ended", event)

    def _notices_of_continued_nets(self) -> Iterator[str]:
        """Yield a notice for each net that starts from the weights of an earlier run.

        Raises RecipeError for a trial, whose results would depend on the trials before it.
        """
        if self.ctx.options.resume:  # from a checkpoint
            return
        for name in continued_nets(self.ctx.recipe):
            if self.origin.function is not None:
                raise RecipeError(
                    f"the module of net {name!r} was trained in an earlier run, from whose weights this trial would "
                    "start; create networks inside the recipe function, so that each run has its own"
                )
            yield (
                f"the module of net {name!r} was trained in an earlier run, and this run starts from those weights; to "
                "start anew, create the module again, such as inside the recipe function"
            )

    def _open_folder(self) -> RunFolder:
        ctx, options = self.ctx, self.ctx.options
        if options.out is None:
            return NoRunFolder()
        if collectives.rank() > 0:
            return RunFolder(options.out, writes=False)
        record = run_record(ctx.recipe, ctx.plan, options, ctx.device, self.origin)
        record["notices"] = list(self.notices)
        with ExitStack() as lock:
            if not options.only:  # otherwise the process that started this one for some stages holds the lock
                lock.enter_context(RunFolder(options.out).locked())
            if options.resume:
                source = self.origin.source
                folder = RunFolder.reopen(options.out, record, source, force=options.force, tidy=not options.only)
            else:
                folder = RunFolder.create(options.out, record, self.origin.source)
                # With those of the runs whose weights are trained further.
                trained = [net for stage in ctx.recipe.stages for net in stage.objectives]
                names = [name_digests(ctx.recipe.data.train), *(net.loaded.training_names for net in trained)]
                folder.save_training_names(torch.unique(torch.cat(names)))
            self.lock = lock.pop_all()
        return folder

    def _train_and_evaluate(self) -> None:
        began = time.perf_counter()
        ctx = self.ctx
        self._report_start()
        for net in ctx.plan.nets:
            net.move_to(ctx.device)
            if isinstance(net.module, nn.Module):
                collectives.sync_module(net.module, ctx.device)
        self._train_stages()
        if ctx.options.only is not None:
            return  # the process that started this one for some stages evaluates the networks
        self.evaluation.evaluate()
        # Last, so that no result can depend on it. Not with several processes, which would slow each other down.
        if self.folder.writes and ctx.options.measure and not collectives.is_distributed():
            seconds = time.perf_counter() - began
            measured = measure_nets(
                ctx.plan.stages, ctx.recipe.data, ctx.options.precision, ctx.device, seconds=seconds
            )
            self.folder.save_measurements(measured)

    def _report_start(self) -> None:
        ctx = self.ctx
        event = RunStarted(
            recipe=run_name(ctx.recipe, self.origin),
            stages=tuple(stage.name for stage in ctx.plan.stages),
            device=str(ctx.device),
            seed=ctx.options.seed,
            folder=ctx.options.out,
            notices=(*self.notices, *ctx.teacher_caching.notices()),
            resumed=ctx.options.resume,
            options=dict(self.origin.options or {}),
            settings=settings_of(ctx.plan, ctx.options),
            parameters={net.name: net.parameters for net in ctx.plan.nets},
            versions=versions(),
        )
        ctx.callbacks.call("run_started", event)

    def _train_stages(self) -> None:
        for index, stage in enumerate(self.ctx.plan.stages):
            folder = self.folder.stage(index, stage.name)
            if self._is_selected(stage, folder):
                trainer = StageTrainer(self.ctx, index, stage, folder)
                try:
                    trainer.train()
                finally:
                    self.history[stage.name] = trainer.history

    def _is_selected(self, stage: Stage, folder: StageFolder) -> bool:
        """Whether to train or load a stage. RunOptions(only=...) may leave it to another process.

        Raises RunFolderError if the stage needs an earlier one that is not finished.
        """
        only = self.ctx.options.only
        if only is None or folder.finished:
            return True
        missing = [name for name in stage_dependencies(self.ctx.plan.stages)[stage.name] if name not in self.history]
        if stage.name in only and missing:
            raise RunFolderError(
                f"stage {stage.name!r} needs stage {missing[0]!r}, which is not finished in {folder.path.parent}"
            )
        return stage.name in only

    def _result(self) -> Result:
        return Result(
            metrics=self.evaluation.metrics,
            nets={net.name: net for net in self.ctx.plan.nets},
            student=self.evaluation.student,
            history=self.history,
            reported_on=self.evaluation.reported_on,
            folder=self.ctx.options.out,
            differences=self.evaluation.differences,
        )


def _origin_in_notebook(recipe: Callable[[], Recipe]) -> Origin | None:
    """Return the code and the arguments of a recipe function that is not in a file; None for one in a file."""
    if source_file(recipe) is not None:
        return None
    code = code_of(recipe)
    return None if code is None else Origin(options=arguments_of(recipe), source=code)


def _require_no_arguments(recipe: object, fields: Mapping[str, object]) -> None:
    """Raise RecipeError if options of a run are arguments of the recipe function."""
    parameters = parameters_by_name(recipe) if isinstance(recipe, FunctionType) else {}
    arguments = [name for name in fields if name in parameters and name not in RunFields.__annotations__]
    if arguments:
        raise RecipeError(
            f"run has no option {arguments[0]!r}, which is an argument of the recipe function; pass a function that "
            f"calls it: kdkit.run(lambda: recipe({arguments[0]}=...))"
        )


def _calls_callbacks(options: RunOptions) -> bool:
    """Whether this process calls callbacks. If it only trains some stages, the process that started it does."""
    return collectives.rank() == 0 and options.only is None


def _with_absolute_paths(options: RunOptions, folder: Path) -> RunOptions:
    """Return the options with paths that do not depend on the working directory. folder: to which they are relative."""
    cache = options.teacher_cache
    return replace(
        options,
        out=None if options.out is None else folder / options.out,
        teacher_cache=folder / cache if isinstance(cache, Path) else cache,
    )


def _agree_on_folder(options: RunOptions) -> RunOptions:
    """Return the options with `out` and `resume` of the first rank.

    `resume` is False if the run was killed at its start, and True if torchrun restarted the ranks of a run.
    """
    resume = options.resume
    if options.out is not None and collectives.rank() == 0:
        if resume:
            resume = not was_killed_at_start(options.out)
        elif restarted():
            resume = can_resume(options.out)
    out, resume = collectives.broadcast((options.out, resume))
    return replace(options, out=out, resume=resume)
