"""Stages that do not need each other, trained at once: each in a process of its own, into the same run folder."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from kdkit.engine.options import RunOptions
from kdkit.engine.run import Result, run
from kdkit.engine.run_record import Origin
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.errors import RecipeError
from kdkit.plugins.recipe_file import RecipeFile
from kdkit.recipe.recipe import Stage, stage_dependencies
from kdkit.study.workers import Job, Processes
from kdkit.utils.randomness import preserve_rng_state, seed_everything

Needs = Mapping[str, Sequence[str]]


def run_at_once(
    file: RecipeFile,
    given: Mapping[str, Any],
    options: RunOptions,
    *,
    jobs: int,
    callbacks: Sequence[object] = (),
    say: Callable[[str], None] = print,
) -> Result:
    """Run a recipe file with these options of its own, as `kdkit.run` does; stages that need not wait go at once.

    jobs: how many processes, each with its share of the cores. say: is told in a line what begins and ends in another
    process, which watchers are not. Figures are those of one job with as many threads, but for the rounding of answers
    that several stages ask one teacher for. What cannot go at once runs in this process.
    Raises RecipeError without a run folder, and what went wrong in a process, whose stage can be gone on with.
    """
    if options.out is None:
        raise RecipeError("stages are trained at once in a run folder: --out FOLDER")
    workers, origin, out = Processes(jobs), Origin(file=file.path, options=given), options.out
    with preserve_rng_state():
        seed_everything(options.seed)
        stages = file.make(given).stages
    run(lambda: file.make(given), replace(options, only=()), origin=origin)  # checks all, and makes the folder
    options = replace(options, resume=True)

    def work(name: str) -> Job:
        alone = replace(options, only=(name,))
        return Job(name=name, folder=out, recipe=file.module.recipe, given=given, origin=origin, options=alone)

    folder = RunFolder(out)
    over = {stage.name for index, stage in enumerate(stages) if folder.stage(index, stage.name).finished}
    with closing(workers):
        _train(_Open(stages, over), workers, work, say)
    return run(lambda: file.make(given), options, callbacks=callbacks, origin=origin)


class _Open:
    """The stages that are not over, and what each of them needs."""

    def __init__(self, stages: Sequence[Stage], over: set[str]) -> None:
        self.needs: Needs = stage_dependencies(stages)
        self._all_needs: dict[str, set[str]] = {}
        for name, needs in self.needs.items():  # of stages in their order, so what is before them is known
            self._all_needs[name] = {each for need in needs for each in (need, *self._all_needs[need])}
        self.over = over
        self.begun: set[str] = set()

    @property
    def ready(self) -> list[str]:
        """Those that may be begun, in their order."""
        open_ = [name for name in self.needs if name not in self.over | self.begun]
        return [name for name in open_ if self.over.issuperset(self.needs[name])]

    @property
    def in_turn(self) -> bool:
        """Whether what is left has one order only, so that there is nothing to gain."""
        before: set[str] = set()
        for name in (each for each in self.needs if each not in self.over):
            if not before.issubset(self._all_needs[name]):
                return False
            before.add(name)
        return True


def _train(stages: _Open, workers: Processes, work: Callable[[str], Job], say: Callable[[str], None]) -> None:
    """Have stages trained as they become ready, until the rest is one after the other."""
    while stages.begun or not stages.in_turn:
        for name in stages.ready:
            if workers.room and not (stages.in_turn and not stages.begun):
                workers.begin(work(name))
                stages.begun.add(name)
                say(f"stage {name}: trained in a process of its own, with {workers.threads} threads")
        name, ended = workers.next_ended()
        if ended.error is not None:
            raise ended.error
        stages.begun.remove(name)
        stages.over.add(name)
        say(f"stage {name}: done in {ended.seconds:.0f} s")
