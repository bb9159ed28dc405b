"""Every error that kdkit raises on purpose: what was expected, what came, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class KdkitError(Exception):
    """Something a user can put right. The command line prints it without a traceback and exits with 2."""


class RecipeError(KdkitError):
    """A recipe file, its options or the objects it is made of do not make an experiment."""


class DataError(KdkitError):
    """Data that is missing, empty or unreadable."""


class PluginError(KdkitError):
    """A plugin that does not fit the hooks, or puts a name on a shelf twice."""


class RunFolderError(KdkitError):
    """A run folder that cannot be written, or cannot be gone on with."""


class RemoteRankError(KdkitError):
    """An error that another process of this run has too, or has caused; the command line leaves it to that one."""


class ContractError(KdkitError):
    """A loss, a tap or a schedule that does not hold what every one of them must: see `kdkit.testing`."""


class WorkerError(KdkitError):
    """A process or a machine that cells are run by: it is not there, is not fit for it, or ended before its cell."""


class BenchmarkError(KdkitError):
    """A benchmark that does not exist, or benchmarks asked for outside a checkout."""


class CacheError(KdkitError):
    """Recorded answers that cannot be kept, or that are not what their teacher says."""


class CheckError(KdkitError):
    """All that is wrong with an experiment, found before its first step."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        title = "1 problem" if count == 1 else f"{count} problems"
        super().__init__(
            "\n".join([f"{title} found before the first step:", *(f"  - {each}" for each in self.problems)])
        )

    def __reduce__(self) -> tuple[type["CheckError"], tuple[tuple[str, ...]]]:
        """Say what it is made of, so that another process can be told of it."""
        return type(self), (self.problems,)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name."""
    return (str(error) or type(error).__name__).splitlines()[0]


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """Return what to say about a wrong name: the nearest right one, or all of them when none is near."""
    names = sorted(names)
    near = get_close_matches(wrong, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are: {', '.join(names)}" if names else "there are none"
