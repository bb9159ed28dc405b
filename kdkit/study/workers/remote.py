"""The function that Ray calls on another machine of a cluster to run one trial there."""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import Timeout

from kdkit.errors import WorkerError
from kdkit.study.workers.child import run_pickled
from kdkit.study.workers.environment import Environment, difference, environment_of
from kdkit.study.workers.pickling import PackedError, pack_error
from kdkit.utils.locks import FileLock

# Seconds to wait for the lock of a trial. Ray may give up a machine that is still running and writing for a while.
LOCK_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyLocation:
    """Where a study was started: `sys.path`, the working directory, and the files to compare between machines."""

    import_path: tuple[str, ...]
    working_directory: Path
    token: Path
    files: tuple[Path, ...]


def run_remote(
    name: str, data: bytes, location: StudyLocation, local: Environment, threads: int
) -> tuple[float, PackedError | None]:
    """Run the pickled job of a trial on this machine. Return its duration in seconds, and its error, if any.

    local: the environment of the machine that started the study.
    """
    sys.path.extend(folder for folder in location.import_path if folder not in sys.path)
    try:
        # Machines are checked before a study starts, but this one may have joined the cluster later.
        mismatch = difference(local, environment_of(location.files, location.token))
        if mismatch is not None:
            raise WorkerError(f"machine {socket.gethostname()} {mismatch}")
        os.chdir(location.working_directory)
        torch.set_num_threads(threads)
        # Ray restarts a trial whose machine was lost; the lock keeps that machine from writing at the same time.
        with FileLock(location.token.parent / f".{name}.lock", timeout=LOCK_TIMEOUT):
            return run_pickled(data)
    except Timeout:  # before OSError, its base class
        return 0.0, pack_error(WorkerError(f"another process still runs trial {name!r}; try again later"))
    except (WorkerError, OSError) as error:
        return 0.0, pack_error(error)
