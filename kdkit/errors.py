"""The errors that kdkit raises on purpose. Each message states what was expected, what came, and what to do."""

import os
import traceback
from collections.abc import Iterable
from difflib import get_close_matches


class KdkitError(Exception):
    """An error that the user can fix. The command line prints it without a traceback and exits with status 2."""


class RecipeError(KdkitError):
    """A recipe file, an option or an object of a recipe is invalid."""


class DataError(KdkitError):
    """Data is missing, empty, unreadable or of the wrong form."""


class PluginError(KdkitError):
    """A plugin does not match the hook specifications, or registers a name twice."""


class PluginWarning(RuntimeWarning):
    """A plugin, a hook or a callback fails, and the others continue. The command line prints it in one line."""


class RunFolderError(KdkitError):
    """A run folder cannot be written, or the run in it cannot be resumed."""


class RemoteRankError(KdkitError):
    """Another rank of this run raised an error. That rank prints it; the command line prints nothing here."""


class ContractError(KdkitError):
    """A loss, a metric, a tap or a schedule breaks a rule that `kdkit.testing` checks for all of them."""


class WorkerError(KdkitError):
    """A worker process or machine is not available, does not suit the trial, or ended before its trial."""


class BenchmarkError(KdkitError):
    """A benchmark does not exist, or a benchmark was requested outside a checkout of kdkit."""


class CacheError(KdkitError):
    """Teacher outputs cannot be cached, or cached ones differ from the outputs of the live teacher."""


class Terminated(SystemExit):
    """SIGTERM ended a run after a training step and a checkpoint. Not an error: job schedulers send this signal."""

    def __init__(self) -> None:
        super().__init__(128 + 15)  # the exit status that shells report for SIGTERM


class CheckError(KdkitError):
    """All problems of an experiment that the check found before its first step."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        title = "1 problem" if count == 1 else f"{count} problems"
        lines = [f"{title} found before the first step:", *(f"  - {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type["CheckError"], tuple[tuple[str, ...]]]:
        """Pickle the problems: `Exception` would pickle the message, and pass it to `__init__` as the problems."""
        return type(self), (self.problems,)


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the name of the error's class if the message is empty.

    The line is cut after 500 characters: the message of a library may contain a whole damaged file.
    """
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= 500 else f"{line[:500]}..."


def describe_error(error: BaseException) -> str:
    """Describe an error in one line: its class, the first line of its message, and the line of code that raised it."""
    lines, frames = str(error).splitlines(), traceback.extract_tb(error.__traceback__)
    message = f": {lines[0]}" if lines else ""
    position = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{message}{position}"


def shows_tracebacks() -> bool:
    """Whether the environment variable KDKIT_TRACEBACK requests tracebacks for errors that are shown in one line."""
    return os.environ.get("KDKIT_TRACEBACK", "0") not in ("", "0")


def shortened(value: object, most: int = 500) -> str:
    """Return the repr of a value that was read from a file, cut after `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def describe(value: object) -> str:
    """Describe a value for an error message: its repr, or, for a class, a hint that it was not called."""
    return f"the class {value.__name__}; did you forget its ()?" if isinstance(value, type) else repr(value)


_MOST_NAMES = 1000  # how many names are compared with an unknown one: a weight file may have millions


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """Return a hint for an unknown name: the most similar valid name, or all valid names if none is similar."""
    names = sorted(names)[:_MOST_NAMES]
    matches = get_close_matches(wrong, names, n=1, cutoff=0.6)  # difflib's default, which finds typos
    if matches:
        return f"did you mean {matches[0]!r}?"
    return f"there are: {', '.join(names)}" if names else "there are none"
