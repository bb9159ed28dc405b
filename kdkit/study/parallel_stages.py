"""Train independent stages in parallel, each in a child process, and write all of them to one run folder."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

from kdkit.engine.options import RunOptions
from kdkit.engine.run import Result, prepared, run
from kdkit.engine.run_record import Origin
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.errors import RecipeError, WorkerError
from kdkit.plugins.recipe_file import RecipeFile
from kdkit.recipe.recipe import Stage, stage_dependencies
from kdkit.study.workers.job import Job
from kdkit.study.workers.processes import Processes


def run_parallel_stages(
    file: RecipeFile,
    origin: Origin,
    options: RunOptions,
    *,
    jobs: int,
    log: Callable[[str], None],
) -> Result:
    """Run a recipe file as `kdkit.run` does, with up to `jobs` independent stages at the same time.

    origin: of the recipe, with the keyword arguments of recipe(). log: is called with a line when a child process
    starts or ends a stage. Stages that depend on each other, and the evaluation, run in this process. Results equal
    those of one job with as many threads, except for the rounding of teacher outputs that several stages compute.

    Raises RecipeError if `options` has no run folder. If a stage fails, raises its error; the run can be resumed.
    """
    if options.out is None:
        raise RecipeError("to train stages in parallel, choose a run folder: --out FOLDER")
    arguments = origin.options or {}
    workers, folder = Processes(jobs), RunFolder(options.out)
    # The recipe is checked and the run folder is created before child processes write to it. Its lock is held from then
    # on, so that no other command can use the folder in between.
    with prepared(lambda: file.make(arguments), replace(options, only=()), origin=origin) as prepared_run:
        stages, lock = prepared_run.ctx.plan.stages, prepared_run.lock.pop_all()
    options = replace(options, resume=True)
    finished = {stage.name for index, stage in enumerate(stages) if folder.stage(index, stage.name).finished}
    pending = _PendingStages(stages, finished)

    def job_of(name: str) -> Job:
        return Job(
            name=name,
            folder=folder.path,
            recipe=file.module.recipe,
            arguments=arguments,
            origin=origin,
            options=replace(options, only=(name,)),
        )

    with lock, closing(workers):
        # Once the remaining stages form a sequence, they are trained in this process.
        while pending.running or not pending.is_sequence:
            for name in pending.ready:
                # The stages that finished in this loop may have left a sequence.
                if workers.has_room and (pending.running or not pending.is_sequence):
                    workers.start(job_of(name))
                    pending.running.add(name)
                    log(f"stage {name}: training in a child process with {workers.threads} threads")
            name, result = workers.next_result()
            if isinstance(result.error, WorkerError):  # its message does not name the stage
                raise WorkerError(f"stage {name!r}: {result.error}") from result.error
            if result.error is not None:
                raise result.error
            pending.running.remove(name)
            pending.finished.add(name)
            log(f"stage {name}: finished in {result.seconds:.0f} s")
        workers.close()
        return run(lambda: file.make(arguments), options, origin=origin)


class _PendingStages:
    """The stages that are not finished, and the stages that each of them needs."""

    def __init__(self, stages: Sequence[Stage], finished: set[str]) -> None:
        self.finished = finished
        self.running: set[str] = set()
        self._needs: Mapping[str, Sequence[str]] = stage_dependencies(stages)
        self._all_needs: dict[str, set[str]] = {}  # including indirect needs
        for name, needs in self._needs.items():  # a stage comes after those that it needs
            self._all_needs[name] = {ancestor for need in needs for ancestor in (need, *self._all_needs[need])}

    @property
    def ready(self) -> list[str]:
        """The stages that can be started, in their order."""
        pending = [name for name in self._needs if name not in self.finished | self.running]
        return [name for name in pending if self.finished.issuperset(self._needs[name])]

    @property
    def is_sequence(self) -> bool:
        """Whether each unfinished stage needs the one before it, so that no two can be trained at the same time."""
        unfinished = [name for name in self._needs if name not in self.finished]
        return all(earlier in self._all_needs[later] for earlier, later in pairwise(unfinished))
