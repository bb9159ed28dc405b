"""Many runs in one folder, each once: what is finished is skipped, and what was interrupted goes on."""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdkit.engine.options import TEACHER_CACHE, RunOptions
from kdkit.engine.run_record import Origin
from kdkit.engine.storage.run_folder import RECORD, read_reported
from kdkit.errors import RecipeError, RunFolderError, did_you_mean
from kdkit.metrics import MetricResult, SplitPredictions
from kdkit.recipe.recipe import Recipe
from kdkit.study.scheduler import run_trials
from kdkit.study.trial import Trial, TrialResult, listed
from kdkit.study.workers import (
    CELL,
    Cluster,
    InProcess,
    Job,
    Processes,
    RayWorkers,
    Workers,
    require_not_reading,
    require_packable,
)

RUN_OPTIONS = ("seed", "precision")  # what else moves the figures of a finished cell


class Study:
    """Runs in one folder, in the order given, each in a folder of its own.

    Raises RecipeError where two cells have one name, or that of the folder of recorded answers, or where one needs a
    cell that does not come before it.
    """

    def __init__(self, folder: str | Path, trials: Sequence[Trial]) -> None:
        self.folder, self.trials = Path(folder), tuple(trials)
        self._digests: dict[str, str] = {}
        known: list[str] = []
        for trial in self.trials:
            if trial.name in known:
                raise RecipeError(f"two cells of the study have the name {trial.name!r}")
            if trial.name == TEACHER_CACHE:
                raise RecipeError(f"no cell is called {trial.name!r}: the folder of that name holds recorded answers")
            for name in trial.needed:
                if name not in known:
                    raise RecipeError(f"cell {trial.name!r} needs {name!r} before it; {did_you_mean(name, known)}")
            known.append(trial.name)

    def run(
        self,
        options: RunOptions | None = None,
        *,
        callbacks: Sequence[object] = (),
        jobs: int = 1,
        cluster: Cluster | None = None,
    ) -> Iterator[TrialResult]:
        """Run what is not finished, and say after each cell what came of it; one that fails does not stop the others.

        options: as for `kdkit.run`; the folder, the seed and whether to resume are the study's to say. A finished cell
        is refused, as failed, where its recipe file, its options, its seed, the precision or the weights of a cell that
        it needs are others now; one that goes on is held to all that `kdkit.run(resume=True)` compares.
        jobs: how many cells are run at once, each in a process with its share of the cores. Figures are those of one
        job with as many threads, to the bit. cluster: machines to run them on instead. Either way a recipe is found by
        its file and name, and watchers work where the cell is run, on copies of their own.
        Raises RunFolderError where another process is at work in this folder, WorkerError where a cluster is not fit
        for it, and RecipeError for watchers that cannot be copied.
        """
        require_not_reading()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._digests.clear()
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                workers = self._workers(jobs, cluster)
                if not isinstance(workers, InProcess):
                    require_packable(callbacks)
                with closing(workers):
                    yield from run_trials(self.trials, partial(self._made, options or RunOptions(), callbacks), workers)
        except Timeout as error:
            raise RunFolderError(f"another process is at work in {self.folder}; wait, or choose another one") from error

    def path(self, name: str) -> Path:
        """Return the folder of a cell."""
        return self.folder / name

    def finished(self, name: str) -> bool:
        """Whether a cell is done."""
        return (self.path(name) / CELL).is_file()

    def metrics(self, name: str) -> dict[str, dict[str, MetricResult]]:
        """Return the scores of a finished cell, by net and score; NaN where there is no figure.

        Raises RunFolderError where they cannot be read.
        """
        file = self.path(name) / "metrics.json"
        try:
            nets = json.loads(file.read_text())["metrics"]
            return {net: {score: _scored(told) for score, told in metrics.items()} for net, metrics in nets.items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{file} cannot be read ({error}); delete {file.parent} to run that again") from error

    def said(self, name: str, net: str) -> SplitPredictions:
        """Return what a net of a finished cell said. Raises RunFolderError where it is not there."""
        reported = read_reported(self.path(name), net)
        return SplitPredictions(reported.validation, reported.validation if reported.test is None else reported.test)

    def _workers(self, jobs: int, cluster: Cluster | None) -> Workers:
        if cluster is None:
            return InProcess() if jobs == 1 else Processes(jobs)
        if jobs != 1:
            raise RecipeError("jobs are processes of this machine, a cluster has its own; give one of the two")
        files = {_file(trial.recipe) for trial in self.trials if not self.finished(trial.name)}
        return RayWorkers(cluster, self.folder, [file for file in files if file is not None])

    def _made(self, options: RunOptions, callbacks: Sequence[object], trial: Trial) -> Job | TrialResult:
        """Make a cell ready to be run, or say that it need not be run, or cannot be."""
        path = self.path(trial.name)
        try:
            options = replace(options, out=path, seed=trial.seed, resume=False)
            if self.finished(trial.name):
                self._require_same(trial, options)
                return TrialResult(trial=trial, state="skipped")
            given, origin = self._given(trial), self._origin(trial)
        except Exception as error:  # what is wrong with one cell must not cost the others
            return TrialResult(trial=trial, state="failed", error=error)
        return Job(
            name=trial.name,
            folder=path,
            recipe=trial.recipe,
            given=given,
            origin=origin,
            options=options,
            callbacks=callbacks,
        )

    def _given(self, trial: Trial) -> dict[str, Any]:
        """Return what the recipe is called with."""
        folders = {
            key: self.path(names) if isinstance(names, str) else tuple(map(self.path, names))
            for key, names in trial.needs.items()
        }
        return {**trial.options, **folders}

    def _origin(self, trial: Trial) -> Origin:
        """Return what is recorded of the recipe: what it needs by name and content, so that a study can be moved."""
        needs = {
            key: ", ".join(f"{name} {self._digest(name)}" for name in listed(names))
            for key, names in trial.needs.items()
        }
        return Origin(file=_file(trial.recipe), options={**trial.options, **needs})

    def _digest(self, name: str) -> str:
        """Return a digest of the weights of a cell, which stay as they are once it is finished."""
        if name not in self._digests:
            digest = hashlib.sha256()
            for file in sorted(self.path(name).rglob("weights*.safetensors")):
                digest.update(file.read_bytes())
            self._digests[name] = digest.hexdigest()[:16]
        return self._digests[name]

    def _require_same(self, trial: Trial, options: RunOptions) -> None:
        """Raise RunFolderError where a finished cell was another run, as far as no data must be read to know it."""
        path, origin = self.path(trial.name), self._origin(trial)
        before = json.loads((path / RECORD).read_text())
        now: dict[str, Any] = {
            "recipe_sha256": None if origin.file is None else hashlib.sha256(origin.file.read_bytes()).hexdigest(),
            "options": {key: str(value) for key, value in (origin.options or {}).items()},
            **{key: getattr(options, key) for key in RUN_OPTIONS},
        }
        for key, value in now.items():
            if before.get(key) != value:
                raise RunFolderError(
                    f"{path} holds a finished run that differs in its {key.replace('_', ' ')}: it had "
                    f"{before.get(key)!r}, this one has {value!r}; choose another folder, or delete that one"
                )


def _file(recipe: Callable[..., Recipe]) -> Path | None:
    """Return the file that a recipe is written in, where there is one."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(recipe))
    except TypeError:  # a callable that is no function
        return None
    return Path(file) if file is not None and Path(file).is_file() else None


def _scored(told: Mapping[str, Any]) -> MetricResult:
    by_class = {name: math.nan if value is None else value for name, value in told["by_class"].items()}
    return MetricResult(
        value=math.nan if told["value"] is None else told["value"], by_class=by_class, note=told["note"]
    )
