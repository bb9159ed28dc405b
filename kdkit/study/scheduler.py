"""Start each trial as soon as the trials that it needs are finished, as many at once as the workers accept."""

from collections.abc import Callable, Iterator, Sequence

from kdkit.errors import RunFolderError
from kdkit.study.trial import Trial, TrialResult
from kdkit.study.workers.job import Job, Workers


def run_trials(
    trials: Sequence[Trial], prepare: Callable[[Trial], Job | TrialResult], workers: Workers
) -> Iterator[TrialResult]:
    """Yield the result of each trial as it ends. Trials that could start at the same time start in the given order.

    prepare: returns the job of a trial, or its result if the trial does not run.
    """
    pending, running = list(trials), dict[str, Trial]()
    succeeded: dict[str, bool] = {}  # of each trial that ended: whether trials that need it may run

    def start(trial: Trial) -> TrialResult | None:
        """Start a trial. Return its result if it does not run."""
        prepared = prepare(trial)
        if isinstance(prepared, TrialResult):
            return prepared
        try:
            workers.start(prepared)
        except Exception as error:  # such as a recipe that cannot be pickled; the other trials still run
            return TrialResult(trial=trial, state="failed", error=error)
        running[trial.name] = trial
        return None

    while pending or running:
        for trial in tuple(pending):
            failed = next((name for name in trial.dependencies if succeeded.get(name) is False), None)
            result = None
            if failed is not None:
                error = RunFolderError(f"it needs trial {failed!r}, which failed or is blocked")
                result = TrialResult(trial=trial, state="blocked", error=error)
            elif workers.has_room and all(succeeded.get(name) for name in trial.dependencies):
                result = start(trial)
            else:
                continue
            pending.remove(trial)
            if result is not None:
                # Recorded now, so that trials that need it can start, or are blocked, later in this loop.
                succeeded[trial.name] = result.error is None
                yield result
        if running:
            name, job_result = workers.next_result()
            succeeded[name] = job_result.error is None
            yield TrialResult(
                trial=running.pop(name),
                state="finished" if succeeded[name] else "failed",
                seconds=job_result.seconds,
                error=job_result.error,
            )
