"""Run each cell as soon as the cells that it needs are ready, as many at once as the workers take."""

from collections.abc import Callable, Iterator, Sequence

from kdkit.errors import RunFolderError
from kdkit.study.trial import Trial, TrialResult
from kdkit.study.workers.job import Job, Workers


def run_trials(
    trials: Sequence[Trial], made: Callable[[Trial], Job | TrialResult], workers: Workers
) -> Iterator[TrialResult]:
    """Yield what came of each cell as it ends; of those that are ready, the first in this order is begun first.

    made: makes a cell ready to be run, or says what came of it where it need not or cannot be.
    """
    waiting, running = list(trials), dict[str, Trial]()
    good: dict[str, bool] = {}  # of each cell that has ended, whether others may build on it
    while waiting or running:
        for trial in tuple(waiting):
            outcome = _lost(trial, good)
            if outcome is None and workers.room and all(good.get(name) for name in trial.needed):
                outcome = _begun(trial, made(trial), workers)
                if outcome is None:
                    running[trial.name] = trial
                    waiting.remove(trial)
            if outcome is not None:
                waiting.remove(trial)
                good[trial.name] = outcome.error is None
                yield outcome
        if running:
            name, ended = workers.next_ended()
            good[name] = ended.error is None
            yield TrialResult(
                trial=running.pop(name),
                state="done" if good[name] else "failed",
                seconds=ended.seconds,
                error=ended.error,
            )


def _lost(trial: Trial, good: dict[str, bool]) -> TrialResult | None:
    """Return the outcome of a cell that needs one which came to nothing."""
    for name in trial.needed:
        if good.get(name) is False:
            error = RunFolderError(f"it needs cell {name!r}, which is not ready")
            return TrialResult(trial=trial, state="waiting", error=error)
    return None


def _begun(trial: Trial, made: Job | TrialResult, workers: Workers) -> TrialResult | None:
    """Begin a cell; return what came of it where it is over before it has begun."""
    if isinstance(made, TrialResult):
        return made
    try:
        workers.begin(made)
    except Exception as error:  # what cannot be pickled must not cost the other cells
        return TrialResult(trial=trial, state="failed", error=error)
    return None
