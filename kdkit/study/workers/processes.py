"""Run jobs in several child processes of this machine, which share its cores and its GPUs."""

import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from math import ceil
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, cast

import torch

from kdkit.engine.interrupts import Interrupts
from kdkit.errors import KdkitError, WorkerError
from kdkit.study.workers.job import Job, JobResult
from kdkit.study.workers.pickling import unpack_error
from kdkit.utils.memory import is_out_of_memory
from kdkit.utils.processes import start_python, usable_cores
from kdkit.utils.validation import validate_count

# -P: do not put the working directory first in `sys.path`; the child gets the whole path of this process instead.
COMMAND = ("-P", "-c", "from kdkit.study.workers.child import main; main()")
TERMINATE_TIMEOUT = 10.0  # seconds from SIGTERM until SIGKILL


class Processes:
    """Child processes that run `jobs` jobs at once.

    A process starts when it is first needed, runs one job after another with `threads` threads, all on the same GPU if
    there are any, and is replaced if it dies. It gets no signals from a terminal, and ends with this process. Raises
    RecipeError unless `jobs` is an integer of at least 1.
    """

    def __init__(self, jobs: int) -> None:
        validate_count("jobs", jobs)
        self.jobs = jobs
        self.threads = max(1, min(torch.get_num_threads(), usable_cores() // jobs))
        self._gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        self._free: list[_Child] = []
        self._busy: dict[str, tuple[_Child, Thread]] = {}
        self._results: SimpleQueue[tuple[str, JobResult]] = SimpleQueue()

    @property
    def has_room(self) -> bool:
        """Whether a process is free or can be started."""
        return len(self._busy) < self.jobs

    def start(self, job: Job) -> None:
        """Send a job to a process. Raises RecipeError if it cannot be pickled."""
        job, sharing = self._place(job)
        data = job.pickled()
        self._free = [child for child in self._free if child.alive]
        # A process that changed its GPU would still take memory on the old one.
        child = next((child for child in self._free if child.gpu == job.gpu), None)
        if child is None:
            child = _Child(self.threads, job.gpu)
        else:
            self._free.remove(child)
        # One thread per job waits for its result, so that `next_result` can wait for the first one.
        thread = Thread(target=self._run, args=(child, job.name, data, sharing), daemon=True)
        self._busy[job.name] = child, thread
        thread.start()

    def next_result(self) -> tuple[str, JobResult]:
        """Wait until one of the started jobs ends. SIGTERM raises Terminated, as Ctrl-C raises KeyboardInterrupt."""
        with Interrupts():
            name, result = self._results.get()
        child, _thread = self._busy.pop(name)
        if child.alive:
            self._free.append(child)
        return name, result

    def close(self) -> None:
        """End all processes. Files are written atomically, so a job may be stopped at any time."""
        busy = [child for child, _thread in self._busy.values()]
        for child in (*self._free, *busy):
            child.terminate()  # all at once, because each may write a checkpoint
        for child in (*self._free, *busy):
            child.wait()
        # The pipes of a busy child belong to its thread, which closes them when the child has ended.
        for child in self._free:
            child.close()
        for _child, thread in self._busy.values():
            thread.join(TERMINATE_TIMEOUT)
        self._free.clear()
        self._busy.clear()

    def _place(self, job: Job) -> tuple[Job, int]:
        """Return a job with a GPU and its share of the memory for samples, and how many jobs its device may have.

        A job with the device "auto" or "cuda" gets the GPU that has the fewest running jobs.
        """
        gpu, sharing = None, self.jobs
        if self._gpus and job.options.device in ("auto", "cuda"):
            counts = Counter(child.gpu for child, _thread in self._busy.values())
            gpu = min(range(self._gpus), key=lambda index: counts[index])  # the first one on a tie
            sharing = ceil(self.jobs / self._gpus)
        # Divided by all jobs that the device may get, because later jobs need as much memory as the first one.
        options = replace(job.options, device_data=job.options.device_data / sharing)
        return replace(job, gpu=gpu, options=options), sharing

    def _run(self, child: "_Child", name: str, data: bytes, sharing: int) -> None:
        """Run a job in a child process, and put the result into the queue for `next_result`."""
        response = child.call(data)
        if response is None:
            result = JobResult(error=WorkerError(child.exit_message()))
            child.close()
        else:
            seconds, packed = response
            if packed is not None and self._gpus:
                # After a kernel fails, CUDA raises its error in every later job of the process.
                child.terminate()
                child.wait()
                child.close()
            error = None if packed is None else _with_sharing(unpack_error(packed), sharing)
            result = JobResult(seconds=seconds, error=error)
        self._results.put((name, result))


class _Child:
    """A child process with pipes for pickles. What a recipe prints goes to stderr. gpu: of its jobs, see `Job`."""

    def __init__(self, threads: int, gpu: int | None) -> None:
        self.gpu = gpu
        # The import of torch and numpy reads OMP_NUM_THREADS, so it must be set before the process starts.
        path = os.pathsep.join(str(Path(folder).resolve()) for folder in sys.path)
        # This process passes signals on. A second one, to the group, would end a job without a checkpoint.
        self._process = start_python(*COMMAND, variables={"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path})
        self._input, self._output = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, data: bytes) -> Any:
        """Send a job and wait for its result: (seconds, packed error or None); None if the process ended first."""
        try:
            pickle.dump(data, self._input)
            self._input.flush()
            return pickle.load(self._output)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):  # ValueError: the pipe is closed
            return None

    def terminate(self) -> None:
        """Send SIGTERM to the process, without waiting until it has ended."""
        self._process.terminate()

    def wait(self) -> int:
        """Wait until the process has ended, kill it after the timeout, and return its exit code."""
        try:
            return self._process.wait(TERMINATE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def exit_message(self) -> str:
        """Return a message about how the process ended."""
        code = self.wait()
        advice = "run it again to resume from its last checkpoint"
        if code >= 0:
            return f"its process ended with exit code {code} before it had finished; {advice}"
        # A negative exit code is a signal; real-time signals on Linux have no name.
        name = signal.Signals(-code).name if -code in [*signal.Signals] else f"signal {-code}"
        memory = " (which the system sends when memory runs out)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory} before it had finished; {advice}"

    def close(self) -> None:
        """Close the pipes of a process that has ended. Must be called by the thread that uses them."""
        for pipe in (self._input, self._output):
            with suppress(OSError):  # data that could not be sent
                pipe.close()


def _with_sharing(error: Exception, sharing: int) -> Exception:
    """Return an error for lack of memory with the number of jobs that may share it, and any other error as it is."""
    # The text is tested too, because a recipe check reports an allocator error as one of several problems.
    if sharing == 1 or not ("out of memory" in str(error) or is_out_of_memory(error)):
        return error
    explained = KdkitError(
        f"{error}\nUp to {sharing} jobs may share this memory at the same time; use fewer (--jobs, or jobs=), and "
        "resume this one from its last checkpoint"
    )
    explained.__cause__ = error
    return explained
