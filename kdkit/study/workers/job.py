"""A job: a trial, or some stages of a run, with everything that a worker needs to run it."""

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from kdkit.engine.options import RunOptions
from kdkit.engine.run import prepared
from kdkit.engine.run_record import Origin
from kdkit.engine.storage.run_folder import can_resume
from kdkit.errors import KdkitError, RecipeError, Terminated
from kdkit.recipe.recipe import Recipe
from kdkit.study.workers.pickling import pickle_object
from kdkit.utils.files import write_output

TRIAL_FILE = "trial.json"  # written last: a trial is finished if its folder has this file


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The result of a job. seconds: its duration, without earlier attempts. error: why it failed."""

    seconds: float = 0.0
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A trial, or some stages of a run.

    folder: its run folder. recipe, arguments: a function that returns a Recipe, and its keyword arguments. origin: the
    recipe file and the options, as they are recorded in the run folder. gpu: the index of the CUDA device for the
    devices "auto" and "cuda" in its options; None for the current device of the process. requires_baseline: see
    `kdkit.engine.run.prepared`.
    """

    name: str
    folder: Path
    recipe: Callable[..., Recipe]
    arguments: Mapping[str, Any]
    origin: Origin
    options: RunOptions
    callbacks: Sequence[object] = ()
    gpu: int | None = None
    requires_baseline: bool = True

    def run(self) -> JobResult:
        """Run the job, or resume it if its folder holds an unfinished run. Returns an exception instead of raising it.

        A complete run is then marked as finished; a job of some stages is not.
        """
        start = time.perf_counter()
        try:
            options = replace(self.options, out=self.folder, resume=can_resume(self.folder))
            with prepared(
                self._make_recipe,
                options,
                callbacks=self.callbacks,
                origin=self.origin,
                requires_baseline=self.requires_baseline,
            ) as prepared_run:
                prepared_run.execute()
            seconds = time.perf_counter() - start
            if options.only is None:
                write_output(self.folder / TRIAL_FILE, json.dumps({"seconds": seconds}), option="--out FOLDER")
        except Exception as error:  # a recipe may raise anything, and the other trials must still run
            self._locate(error)
            return JobResult(seconds=time.perf_counter() - start, error=error)
        return JobResult(seconds=seconds)

    def pickled(self) -> bytes:
        """Return this job for another process. Raises RecipeError if it cannot be pickled."""
        file, source = self.origin.file, self.origin.source
        sources = {} if file is None or source is None else {file: source}
        return pickle_object(self, f"trial {self.name!r}", sources)

    def _make_recipe(self) -> Recipe:
        try:
            return self.recipe(**self.arguments)
        except Terminated:  # of a run in recipe(), which SIGTERM ended
            raise
        except SystemExit as error:  # not an Exception: it would end the other trials too
            raise RecipeError(f"recipe() raises SystemExit: {error}; recipe() must return a Recipe") from error

    def _locate(self, error: Exception) -> None:
        """Add a note with the innermost line of the recipe file to an error of user code."""
        if self.origin.file is None or isinstance(error, KdkitError):
            return
        file, frames = self.origin.file.resolve(), traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file]
        if lines:
            error.add_note(f"kdkit: raised in {self.origin.file}, line {lines[-1]}")


class Workers(Protocol):
    """Runs jobs, possibly several at once."""

    @property
    def has_room(self) -> bool:
        """Whether another job can be started."""
        ...

    def start(self, job: Job) -> None:
        """Start a job. Raises KdkitError if it cannot be sent to a worker."""
        ...

    def next_result(self) -> tuple[str, JobResult]:
        """Wait until one of the started jobs ends, and return its name and its result."""
        ...

    def close(self) -> None:
        """Stop the jobs that are still running; they can be resumed later."""
        ...
