"""The child process of `processes.py`: runs one job after another, and sends back the result of each."""

import gc
import os
import pickle
import threading
from dataclasses import replace
from queue import SimpleQueue
from typing import IO

import torch

from kdkit.study.workers.job import Job
from kdkit.study.workers.pickling import PackedError, pack_error
from kdkit.utils.memory import keep_freed_memory


def main() -> None:
    """Run the jobs that arrive on stdin until the parent process closes it."""
    incoming, outgoing = _take_over_pipes()
    keep_freed_memory()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    jobs: SimpleQueue[bytes] = SimpleQueue()

    def receive() -> None:
        # In a separate thread, so that the process ends with its parent even while a job runs.
        try:
            while True:
                jobs.put(pickle.load(incoming))
        except BaseException:
            os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    while True:
        seconds, error = run_pickled(jobs.get())
        if error is None and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it untyped
            gc.collect()  # cycles of references hold tensors
            torch.cuda.empty_cache()  # otherwise torch keeps the memory, which other jobs may need
        pickle.dump((seconds, error), outgoing)
        outgoing.flush()


def run_pickled(data: bytes) -> tuple[float, PackedError | None]:
    """Run a pickled job. Return its seconds, and its error, if any, in a form that another process can read."""
    try:
        job: Job = pickle.loads(data)
        if job.gpu is not None:
            # The options still say "cuda", so that a recipe that uses "cuda" gets the same device.
            torch.cuda.set_device(job.gpu)
    except Exception as error:  # unpickling imports the file of the recipe, which may raise anything
        return 0.0, pack_error(error)
    # Several processes would draw their progress bars over each other.
    result = replace(job, options=replace(job.options, progress=False)).run()
    return result.seconds, None if result.error is None else pack_error(result.error)


def _take_over_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return the pipes from and to the parent, and redirect stdin and stdout away from them.

    A recipe that prints or reads input would otherwise write into the stream of pickles, or take jobs from it.
    """
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return incoming, outgoing
