"""The other side of `cluster`: one cell, run on the machine that Ray chose for it."""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from kdkit.errors import WorkerError
from kdkit.study.workers.child import answer
from kdkit.study.workers.environment import Conditions, conditions, difference
from kdkit.study.workers.pickling import Told, packed_error

FENCE = 120.0  # seconds for a machine that was given up, and may still write, to be gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a study is asked for: where modules are looked for, the working folder, and what must be alike."""

    path: tuple[str, ...]
    folder: Path
    token: Path
    files: tuple[Path, ...]


def run_there(name: str, data: bytes, place: Place, here: Conditions, threads: int) -> tuple[float, Told | None]:
    """Run a cell on the machine that Ray chose; return its seconds and its error. Ray begins it again where it is lost.

    A machine that joined later is held to the same conditions. One that was given up may not have noticed it yet, so a
    cell is locked while it is at work.
    """
    sys.path.extend(each for each in place.path if each not in sys.path)
    try:
        unlike = difference(here, conditions(place.files, place.token))
        if unlike is not None:
            raise WorkerError(f"machine {socket.gethostname()} {unlike}")
        os.chdir(place.folder)
        torch.set_num_threads(threads)
        with FileLock(place.token.parent / f".{name}.lock", timeout=FENCE):
            return answer(data)
    except (WorkerError, OSError) as error:
        return 0.0, packed_error(error)
    except Timeout:
        return 0.0, packed_error(WorkerError(f"another process is still at work on cell {name!r}; ask again later"))
