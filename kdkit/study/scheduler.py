"""Run each cell as soon as the cells that it needs are ready, as many at once as the workers take."""

from collections.abc import Callable, Iterator, Sequence

from kdkit.errors import RunFolderError
from kdkit.study.trial import Cell, Outcome
from kdkit.study.workers.job import Work, Workers


def spread(cells: Sequence[Cell], made: Callable[[Cell], Work | Outcome], workers: Workers) -> Iterator[Outcome]:
    """Yield what came of each cell as it ends; of those that are ready, the first in this order is begun first.

    made: makes a cell ready to be run, or says what came of it where it need not or cannot be.
    """
    waiting, running = list(cells), dict[str, Cell]()
    good: dict[str, bool] = {}  # of each cell that has ended, whether others may build on it
    while waiting or running:
        for cell in tuple(waiting):
            outcome = _lost(cell, good)
            if outcome is None and workers.room and all(good.get(name) for name in cell.needed):
                outcome = _begun(cell, made(cell), workers)
                if outcome is None:
                    running[cell.name] = cell
                    waiting.remove(cell)
            if outcome is not None:
                waiting.remove(cell)
                good[cell.name] = outcome.error is None
                yield outcome
        if running:
            name, ended = workers.next_ended()
            good[name] = ended.error is None
            yield Outcome(
                cell=running.pop(name),
                state="done" if good[name] else "failed",
                seconds=ended.seconds,
                error=ended.error,
            )


def _lost(cell: Cell, good: dict[str, bool]) -> Outcome | None:
    """Return the outcome of a cell that needs one which came to nothing."""
    for name in cell.needed:
        if good.get(name) is False:
            error = RunFolderError(f"it needs cell {name!r}, which is not ready")
            return Outcome(cell=cell, state="waiting", error=error)
    return None


def _begun(cell: Cell, made: Work | Outcome, workers: Workers) -> Outcome | None:
    """Begin a cell; return what came of it where it is over before it has begun."""
    if isinstance(made, Outcome):
        return made
    try:
        workers.begin(made)
    except Exception as error:  # what cannot be pickled must not cost the other cells
        return Outcome(cell=cell, state="failed", error=error)
    return None
