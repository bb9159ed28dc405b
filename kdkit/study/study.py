"""Run many trials in one folder, each once: finished trials are skipped, and interrupted ones are resumed."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kdkit.engine.options import TEACHER_CACHE, RunOptions, require_options
from kdkit.engine.run_record import Origin
from kdkit.engine.storage.finished_run import read_metrics, stored_predictions
from kdkit.engine.storage.run_folder import LOCK, can_resume, locked_folder, read_record
from kdkit.errors import RecipeError, RunFolderError, describe, did_you_mean, first_line
from kdkit.metrics.base import MetricResult
from kdkit.metrics.paired import SplitPredictions
from kdkit.nets.weights import runs_in
from kdkit.recipe.recipe import Recipe
from kdkit.recipe.recipe_code import arguments_of, code_of, function_of, source_file
from kdkit.study.scheduler import run_trials
from kdkit.study.settings import Settings, differences, settings_of, unknown_run
from kdkit.study.trial import Trial, TrialResult, as_names
from kdkit.study.workers.in_process import InProcess
from kdkit.study.workers.job import TRIAL_FILE, Job, Workers
from kdkit.study.workers.pickling import require_guarded_script, require_picklable
from kdkit.study.workers.processes import Processes
from kdkit.study.workers.ray import Cluster, RayWorkers
from kdkit.utils.files import exists, is_file
from kdkit.utils.locks import FileLock
from kdkit.utils.paths import user_path
from kdkit.utils.reprs import describe_count, describe_names, first_three

_ADVICE = "choose another folder (--out FOLDER, or folder=FOLDER in Python)"


class Study:
    """Trials in one folder, each in a subfolder with its name, in the given order.

    Raises RecipeError if two trials have the same name, if one has the name of the teacher cache folder, or if one
    needs a trial that does not precede it.
    """

    def __init__(self, folder: str | Path, trials: Sequence[Trial]) -> None:
        listed = (*trials,) if isinstance(trials, Iterable) else (trials,)
        if not isinstance(folder, str | os.PathLike) or not all(isinstance(trial, Trial) for trial in listed):
            raise RecipeError(
                "a study has a folder and a list of trials, Study(folder, [Trial(...), ...]); got "
                f"Study({describe(folder)}, {describe(trials)})"
            )
        self.folder, self.trials = user_path(folder), listed
        self._digests: dict[str, str] = {}
        # Read once, because recipe files may be edited before the last trial starts.
        self._files = {trial.name: source_file(trial.recipe) for trial in self.trials}
        self._sources = {file: file.read_bytes() for file in {*self._files.values()} if file is not None}
        # Of different trials, some may have no student, such as the teacher for all of them.
        self._requires_baseline = len({(id(trial.recipe), repr(trial.options)) for trial in self.trials}) == 1
        names: list[str] = []
        for trial in self.trials:
            folded = trial.name.casefold()  # not all file systems distinguish upper and lower case
            if folded in map(str.casefold, names):
                raise RecipeError(f"two trials of the study have the name {trial.name!r}; rename one")
            if folded == TEACHER_CACHE:
                raise RecipeError(f"a trial cannot be named {trial.name!r}, which is the folder of the teacher cache")
            for name in trial.dependencies:
                # A trial may need only earlier ones, so there is no cycle.
                if name not in names:
                    raise RecipeError(f"trial {trial.name!r} needs {name!r} before it; {did_you_mean(name, names)}")
            names.append(trial.name)

    def __repr__(self) -> str:
        trials = f"{describe_count(len(self.trials), 'trial')}: {describe_names(trial.name for trial in self.trials)}"
        return f"Study({str(self.folder)!r}, {trials})"

    def run(
        self,
        options: RunOptions | None = None,
        *,
        callbacks: Sequence[object] = (),
        jobs: int = 1,
        cluster: Cluster | None = None,
    ) -> Iterator[TrialResult]:
        """Run the trials that are not finished, and yield the result of each trial. A failure does not stop the others.

        The trials run while the results are read, `for result in study.run(): ...`. Warns if they are not read.

        options: as for `kdkit.run`, except that the study sets `out`, `seed` and `resume`.
        jobs: how many trials run at once, each in a process with its share of the cores. Results are equal, bit for
        bit, to those of one job with as many threads. With the device "auto" or "cuda", each job gets the GPU with
        the fewest jobs, and the jobs on a GPU divide the share `device_data`. cluster: run the trials on a Ray cluster
        instead. In both cases the recipe must be defined at the top level of a file, and each trial gets copies of the
        callbacks in its process.

        A finished trial fails instead of being skipped if its recipe file or function, its options, its seed, the
        precision or the weights of a trial that it needs have changed. If the function is in a notebook, its code is
        compared, and that of the functions, classes and constants of the notebook that it uses. An interrupted trial
        is compared as in `kdkit.run(resume=True)`. With `baseline`, a trial without distilled students has no baseline,
        unless all trials differ in seeds only.

        Raises RunFolderError if another process runs a study in this folder, or if it cannot be written, WorkerError if
        the cluster cannot run the trials, and RecipeError if a callback cannot be pickled, or if `only` is set.
        """
        require_options(options)
        if options is not None and options.only is not None:
            raise RecipeError("a study trains all stages of its trials; expected RunOptions(only=None)")
        require_guarded_script()
        return _Results(self._run_trials(options or RunOptions(), callbacks, jobs, cluster))

    def _run_trials(
        self, options: RunOptions, callbacks: Sequence[object], jobs: int, cluster: Cluster | None
    ) -> Iterator[TrialResult]:
        self._digests.clear()  # weights may have changed since the last call
        with locked_folder(self.folder, FileLock(self.folder / LOCK), _unwritable):
            workers = self._workers(jobs, cluster)
            if not isinstance(workers, InProcess):
                require_picklable(callbacks)
            prepare = partial(self._prepare, options, callbacks)
            with closing(workers):
                yield from run_trials(self.trials, prepare, workers)

    def require_comparable(self, options: RunOptions) -> None:
        """Raise RunFolderError if the folder holds anything but runs of these trials, with these seeds or others.

        For trials that are compared with each other: a run with other options would distort the comparison.
        options: as for `run`; if `force` is set, a run may differ.
        """
        if can_resume(self.folder):
            raise RunFolderError(f"{self.folder} is the folder of a single run, not of several; {_ADVICE}")
        runs = runs_in(self.folder)
        if not runs and self.folder.is_dir() and not exists(self.folder / LOCK):
            files = sorted(file.name for file in self.folder.iterdir() if not file.name.startswith("."))
            if files and files != [TEACHER_CACHE]:
                raise RunFolderError(f"{self.folder} holds no runs, but {first_three(files)}; {_ADVICE}")
        records: dict[str, Mapping[str, Any]] = {}
        for run in () if options.force else runs:
            with suppress(RunFolderError):  # it cannot be read; a trial of this name will fail with this error
                records[run] = read_record(self.path(run))
        unknown = unknown_run({trial.name: self._settings(trial, options) for trial in self.trials}, records)
        if unknown is not None:
            raise RunFolderError(
                f"{self.folder} holds other runs, such as {unknown}; pass the same options, and all values of a sweep; "
                f"or {_ADVICE}, or delete those runs"
            )

    def path(self, name: str) -> Path:
        """Return the folder of a trial."""
        return self.folder / name

    def finished(self, name: str) -> bool:
        """Whether a trial is finished."""
        return is_file(self.path(name) / TRIAL_FILE)

    def metrics(self, name: str) -> dict[str, dict[str, MetricResult]]:
        """Return the metrics of a finished trial, by net and metric name; NaN for a value that is undefined.

        Raises RunFolderError if the trial has no folder, or if they cannot be read.
        """
        path = self._begun(name)
        return {net: dict(results) for net, results in read_metrics(path).results.items()}

    def predictions(self, name: str, net: str) -> SplitPredictions:
        """Return the predictions of a net of a finished trial.

        Without a test split, the predictions on the validation split are returned for both. Raises
        RunFolderError if there are none.
        """
        return stored_predictions(self._begun(name), net)

    def _begun(self, name: str) -> Path:
        """Return the folder of a trial. Raises RunFolderError if it has none, because it was not run."""
        path = self.path(name)
        if not exists(path):
            names = [trial.name for trial in self.trials]
            advice = "study.run() runs it while its results are iterated over: for result in study.run(): ..."
            raise RunFolderError(
                f"trial {name!r} was not run in {self.folder}; {advice if name in names else did_you_mean(name, names)}"
            )
        return path

    def _workers(self, jobs: int, cluster: Cluster | None) -> Workers:
        if cluster is None:
            return InProcess() if jobs == 1 else Processes(jobs)
        if jobs != 1:
            raise RecipeError("jobs are processes on this machine, and a cluster has its own; use only one of the two")
        files = {self._files[trial.name] for trial in self.trials if not self.finished(trial.name)}
        return RayWorkers(cluster, self.folder, [file for file in files if file is not None])

    def _prepare(self, options: RunOptions, callbacks: Sequence[object], trial: Trial) -> Job | TrialResult:
        """Return the job of a trial, or its result if it was finished before or cannot be run."""
        path = self.path(trial.name)
        try:
            # A progress bar and a table for each trial would bury the output of the script.
            progress = options.progress or False
            options = replace(options, out=path, seed=trial.seed, resume=False, progress=progress)
            if self.finished(trial.name):
                self._require_unchanged(trial, options)
                return TrialResult(trial=trial, state="skipped")
            folders = {
                parameter: self.path(names) if isinstance(names, str) else tuple(map(self.path, names))
                for parameter, names in trial.needs.items()
            }
            origin = self._origin(trial)
        except Exception as error:  # the other trials must still run
            return TrialResult(trial=trial, state="failed", error=error)
        return Job(
            name=trial.name,
            folder=path,
            recipe=trial.recipe,
            arguments={**trial.options, **folders},
            origin=origin,
            options=options,
            callbacks=callbacks,
            requires_baseline=self._requires_baseline,
        )

    def _origin(self, trial: Trial) -> Origin:
        """Return the recipe file and the options, as they are recorded in the run folder.

        Needed trials are recorded by name and digest instead of by folder, so that a study can be moved.
        """
        needs = {
            parameter: ", ".join(f"{name} {self._digest(name)}" for name in as_names(names))
            for parameter, names in trial.needs.items()
        }
        file = self._files[trial.name]
        return Origin(
            file=file,
            function=_name_of(trial.recipe),
            options={**arguments_of(trial.recipe), **trial.options, **needs},
            command=trial.command,
            source=code_of(trial.recipe) if file is None else self._sources[file],
        )

    def _settings(self, trial: Trial, options: RunOptions) -> Settings:
        return settings_of(self._origin(trial), replace(options, seed=trial.seed))

    def _digest(self, name: str) -> str:
        """Return a digest of the weights of a finished trial."""
        # Cached for one call of `run`: many students may need one teacher, and a finished trial does not change.
        if name not in self._digests:
            digest = hashlib.sha256()
            for file in sorted(self.path(name).rglob("weights*.safetensors")):
                digest.update(file.read_bytes())
            self._digests[name] = digest.hexdigest()[:16]
        return self._digests[name]

    def _require_unchanged(self, trial: Trial, options: RunOptions) -> None:
        """Raise RunFolderError if a finished trial differs from this one.

        Compares only what is known without reading the data, so that a finished trial is skipped quickly.
        """
        path = self.path(trial.name)
        changes = differences(self._settings(trial, options), read_record(path))
        if changes:
            raise RunFolderError(
                f"{path} holds a finished run that differs in {'; and in '.join(changes)}; choose another folder, "
                "or delete this one"
            )


def _unwritable(folder: Path, error: Exception) -> RunFolderError:
    return RunFolderError(f"{folder} cannot be written: {first_line(error)}; {_ADVICE}")


def _name_of(recipe: Callable[..., Recipe]) -> str:
    """Return the name of a recipe function, or of the class of another callable."""
    function = function_of(recipe)
    return str(getattr(function, "__qualname__", type(function).__name__))


class _Results(Iterator[TrialResult]):
    """The results of trials, which run while these are read. Warns if it is deleted before the first one is read."""

    def __init__(self, results: Iterator[TrialResult]) -> None:
        self._results = results
        self._is_read = False

    def __next__(self) -> TrialResult:
        self._is_read = True
        return next(self._results)

    def __del__(self) -> None:
        if not self._is_read:
            warnings.warn(
                "no trial was run, because the results of run() were not read; read them, as in `for result in "
                "study.run(): ...`",
                RuntimeWarning,
                stacklevel=2,
            )
