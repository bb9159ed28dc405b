"""Several processes of this machine that run cells, each with its share of the cores."""

import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, cast

import torch

from kdkit.errors import RecipeError, WorkerError
from kdkit.study.workers.job import Job, JobResult
from kdkit.study.workers.pickling import packed, unpacked_error
from kdkit.utils.devices import usable_cores

# -P: the folder that one stands in is looked in only where this process does so too.
COMMAND = ("-P", "-c", "from kdkit.study.workers.child import main; main()")
PATIENCE = 10.0  # seconds from asking a process to end until it is made to


class Processes:
    """So many child processes, each started when it is first needed, and anew where one has died.

    A child runs one cell after another, with `threads` threads. It ignores SIGINT, and ends when this process does.
    Raises RecipeError for a number of jobs that is none.
    """

    def __init__(self, jobs: int) -> None:
        if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
            raise RecipeError(f"jobs is how many cells are run at once, a whole number of at least 1; got {jobs!r}")
        self.jobs = jobs
        self.threads = max(1, min(torch.get_num_threads(), usable_cores() // jobs))
        self._free: list[_Child] = []
        self._busy: dict[str, tuple[_Child, Thread]] = {}
        self._ended: SimpleQueue[tuple[str, JobResult]] = SimpleQueue()

    @property
    def room(self) -> bool:
        """Whether a process is free, or may be started."""
        return len(self._busy) < self.jobs

    def begin(self, work: Job) -> None:
        """Hand a cell to a process. Raises RecipeError where it cannot be brought there."""
        data = packed(work, f"cell {work.name!r}")
        self._free = [child for child in self._free if child.alive]
        child = self._free.pop() if self._free else _Child(self.threads)
        thread = Thread(target=self._serve, args=(child, work.name, data), daemon=True)
        self._busy[work.name] = child, thread
        thread.start()

    def next_ended(self) -> tuple[str, JobResult]:
        """Wait until one of those that were begun has ended."""
        name, ended = self._ended.get()
        child, _thread = self._busy.pop(name)
        if child.alive:
            self._free.append(child)
        return name, ended

    def close(self) -> None:
        """End all processes. All that they write is whole or not there, so that they need not be waited for."""
        for child in self._free:
            child.end()
            child.close()
        for child, _thread in self._busy.values():
            child.end()
        for _child, thread in self._busy.values():
            thread.join(PATIENCE)
        self._free.clear()
        self._busy.clear()

    def _serve(self, child: "_Child", name: str, data: bytes) -> None:
        """Have a cell run by a child, and keep how it ended for `next_ended`."""
        answer = child.ask(data)
        if answer is None:
            ended = JobResult(error=WorkerError(child.died()))
            child.close()
        else:
            seconds, error = answer
            ended = JobResult(seconds=seconds, error=None if error is None else unpacked_error(error))
        self._ended.put((name, ended))


class _Child:
    """A process that answers with how a cell ended. Pickles go through its pipes, what a recipe prints to stderr."""

    def __init__(self, threads: int) -> None:
        # What sets threads is read as torch and numpy are imported, so that it must be there before.
        more = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(_path())}
        self._process = subprocess.Popen(
            [sys.executable, *COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **more}
        )
        self._to, self._from = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, data: bytes) -> Any:
        """Send a cell and wait for the answer; None where the process ended first."""
        try:
            pickle.dump(data, self._to)
            self._to.flush()
            return pickle.load(self._from)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            return None

    def end(self) -> int:
        """End the process and return its exit code."""
        self._process.terminate()
        return self._waited()

    def died(self) -> str:
        """Say how a process ended that no longer answers."""
        code = self._waited()
        again = "ask for the same again to go on from its last epoch"
        if code >= 0:
            return f"its process ended with exit code {code} before the cell was done; {again}"
        name = signal.Signals(-code).name if -code in [*signal.Signals] else f"signal {-code}"
        memory = " (which the system sends where memory runs out)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory} before the cell was done; {again}"

    def _waited(self) -> int:
        """Wait until the process has ended, but not for ever."""
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def close(self) -> None:
        """Close the pipes of a process that has ended; for the thread that reads them, since another would wait."""
        for pipe in (self._to, self._from):
            with suppress(OSError):  # what could not be sent
                pipe.close()


def _path() -> list[str]:
    """Return where this process looks for modules, as another one is told."""
    return [str(Path(each).resolve()) for each in sys.path]
