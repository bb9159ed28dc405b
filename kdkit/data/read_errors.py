"""Explain why data cannot be read: errors in user code, lost workers, and exhausted resources."""

import multiprocessing
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from kdkit.errors import DataError, KdkitError, describe_error
from kdkit.utils.memory import is_out_of_memory
from kdkit.utils.reprs import format_bytes

# A DataLoader raises the error of a worker again, with the traceback as its message.
_CAUGHT = re.compile(r"Caught (\w+) in DataLoader worker process (\d+)")
_KILLED = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: ([\w ]+)")
_EXITED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) exited unexpectedly(?: with exit code (\d+))?")
_TIMED_OUT = re.compile(r"DataLoader timed out after ([\d.]+) seconds")
# How torch and the system report that /dev/shm, where workers pass batches, is full, or that too many files are open.
_SHARED_MEMORY = ("Bus error", "file </torch_", "shared memory")
_FILES = ("Too many open files", "received 0 items of ancdata")
# On macOS and Windows, and from Python 3.14 on, a worker process imports the main script.
_GUARD = "in a script, start the run below `if __name__ == '__main__':`, because worker processes import the script"
_NAME = "a recipe file needs a name that these processes can import, such as my_recipe.py, not my-recipe.py"
_FEWER = "use fewer workers (Training(workers=...), or num_workers of the DataLoader) or smaller batches"


def explain_unreadable(error: Exception, position: str, *, has_workers: bool = False) -> Exception:
    """Return the DataError to raise instead of an error in user code. Errors of kdkit and out of memory are unchanged.

    position: what cannot be read, such as "batch 3 of the train data". has_workers: whether a DataLoader reads it in
    worker processes.
    """
    text = str(error)
    caught = _CAUGHT.match(text)
    if isinstance(error, KdkitError):
        return error if caught is None else DataError(_message_in(text, caught[1]))
    if is_out_of_memory(error):
        return error
    if any(part in text for part in _SHARED_MEMORY):
        left = ""
        with suppress(OSError):  # the folder exists on Linux only
            left = f" (/dev/shm has {format_bytes(shutil.disk_usage('/dev/shm').free, base=1024)} left)"
        return DataError(
            f"{position} cannot be read: the shared memory in which workers pass batches is full{left}; {_FEWER}, give "
            "the container more of it (docker run --shm-size=8g), or call "
            "torch.multiprocessing.set_sharing_strategy('file_system') first"
        )
    if any(part in text for part in _FILES):
        return DataError(
            f"{position} cannot be read: too many files are open; raise the limit (ulimit -n), or call "
            "torch.multiprocessing.set_sharing_strategy('file_system') first"
        )
    ended = explain_ended_worker(error, position)
    if has_workers and caught is None and isinstance(error, ConnectionError | EOFError):
        ended = _ended(position, "a worker process")  # it ended before it passed its batch, and torch does not know yet
    if ended is not None:
        return ended
    timed_out = _TIMED_OUT.search(text)
    if timed_out is not None:
        return DataError(
            f"{position} was not read within {timed_out[1]} seconds, the timeout of the DataLoader; check the storage, "
            "or increase the timeout"
        )
    advice = "correct the data or the code that reads it; KDKIT_TRACEBACK=1 shows the whole traceback"
    if has_workers and caught is None and "pickle" in text:
        advice = "workers need data that can be pickled: define it at the top level of a file, or use no workers"
    elif "bootstrapping phase" in text:  # Python's error if a worker process starts workers while it imports the script
        return DataError(f"{position} cannot be read: {_GUARD}")
    elif "daemonic processes" in text:
        advice = (
            "this is a process of a multiprocessing.Pool, which may start none: read without workers, or start runs "
            "with concurrent.futures.ProcessPoolExecutor or a kdkit.Study"
        )
    return DataError(f"{position} cannot be read: {_describe(error, caught)}; {advice}")


@contextmanager
def explaining(position: Callable[[], str]) -> Iterator[None]:
    """Raise the explanation of any error in this context. position: returns what cannot be read."""
    try:
        yield
    except Exception as error:  # user code may raise anything
        raise_explained(error, explain_unreadable(error, position()))


def raise_explained(error: Exception, explained: Exception) -> NoReturn:
    """Raise the explanation of an error, which may be the error itself."""
    if explained is error:
        raise error
    raise explained from error


def explain_ended_worker(error: Exception, position: str) -> DataError | None:
    """Return the DataError for torch's error that a worker process has ended; None for any other error.

    torch raises it in the main thread, at any line, as soon as the system reports the end of the process.
    """
    killed, exited = _KILLED.search(str(error)), _EXITED.search(str(error))
    if killed is not None:
        return DataError(
            f"{position} cannot be read: worker process {killed[1]} was ended by the signal {killed[2].strip()!r}; the "
            f"system kills processes if memory runs out: {_FEWER}"
        )
    if exited is not None:
        code = "" if exited[2] is None else f" and with exit code {exited[2]}"
        return _ended(position, f"worker process {exited[1]}", code)
    return None


def _ended(position: str, worker: str, code: str = "") -> DataError:
    guard = "" if multiprocessing.get_start_method() == "fork" else f"; {_GUARD}; {_NAME}"
    return DataError(
        f"{position} cannot be read: {worker} ended without an error message{code}; the system kills processes if "
        f"memory runs out: {_FEWER}; to find other causes, read the data without workers{guard}"
    )


def _describe(error: Exception, caught: re.Match[str] | None) -> str:
    """Describe an error in user code in one line. caught: the start of its message if a worker raised it."""
    if caught is None:
        return describe_error(error)
    text = str(error)
    message = _message_in(text, caught[1]).splitlines()
    frames = re.findall(r'^\s*File "(.*?)", line (\d+), in ', text, re.MULTILINE)
    position = f"{frames[-1][0]}, line {frames[-1][1]}, " if frames else ""
    return f"{caught[1]}{f': {message[0]}' if message else ''} ({position}in worker process {caught[2]})"


def _message_in(text: str, name: str) -> str:
    """Return the message of an error of this class from the text of its traceback."""
    starts = list(re.finditer(rf"^(?:[\w.]+\.)?{name}(?:: ?|$)", text, re.MULTILINE))
    return text[starts[-1].end() :].strip() if starts else ""
