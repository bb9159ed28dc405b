"""The other side of `processes`: a process that runs one cell after another and says how each ended."""

import os
import pickle
import signal
import threading
from queue import SimpleQueue
from typing import IO

import torch

from kdkit.study.workers.job import Job
from kdkit.study.workers.pickling import Told, packed_error
from kdkit.utils.memory import keep_freed_memory


def main() -> None:
    """Run what comes in through stdin until nobody is there any more to send it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the study that is interrupted, and ends its children then
    coming, going = _pipes()
    keep_freed_memory()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    trials: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(coming, trials), daemon=True).start()
    while True:
        pickle.dump(answer(trials.get()), going)
        going.flush()


def answer(data: bytes) -> tuple[float, Told | None]:
    """Run a cell; return its seconds, and the error that it failed with as another process can read it."""
    try:
        work: Job = pickle.loads(data)
    except Exception as error:  # the recipe's file may raise whatever code may
        return 0.0, packed_error(error)
    ended = work.do()
    return ended.seconds, None if ended.error is None else packed_error(ended.error)


def _listen(coming: IO[bytes], trials: SimpleQueue[bytes]) -> None:
    """Take cells as they come; end this process when the study's has, so that no cell is run by nobody's order."""
    try:
        while True:
            trials.put(pickle.load(coming))
    except BaseException:
        os._exit(1)


def _pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return the pipes from and to the study, out of reach of what a recipe reads and prints."""
    coming, going = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return coming, going
