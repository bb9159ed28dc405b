"""Run jobs on the machines of a Ray cluster, all in one shared folder."""

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from kdkit.errors import RecipeError, WorkerError, first_line
from kdkit.study.workers.environment import difference, environment_of
from kdkit.study.workers.job import Job, JobResult
from kdkit.study.workers.pickling import unpack_error
from kdkit.study.workers.remote import StudyLocation, run_remote

CONNECT_TIMEOUT = 10.0  # seconds
PROBE_TIMEOUT = 120.0  # seconds for a machine to start a process and import torch
CANCEL_TIMEOUT = 10.0  # seconds for running trials to stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A running Ray cluster.

    address: "auto" for the cluster of this machine (`ray start`, or RAY_ADDRESS), otherwise "host:port".
    cpus: CPUs of each trial, and its number of threads. gpus: GPUs of each trial, possibly a fraction of one.
    retries: how often a trial whose process or machine was lost is restarted from its last checkpoint.

    Raises RecipeError if the address or a number is not valid.
    """

    address: str = "auto"
    cpus: int = 1
    gpus: float = 0
    retries: int = 3

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if self.address != "auto" and (not port.isdigit() or not host or "/" in host):
            raise RecipeError(f"the address of a cluster must be 'auto' or 'host:port'; got {self.address!r}")
        for name, least in (("cpus", 1), ("gpus", 0), ("retries", 0)):
            value, types = getattr(self, name), (int, float) if name == "gpus" else (int,)
            # `not >=` instead of `<`, so that NaN is rejected too.
            if isinstance(value, bool) or not isinstance(value, types) or not value >= least:
                raise RecipeError(f"{name} of a cluster must be a number of at least {least}; got {value!r}")


class RayWorkers:
    """The machines of a cluster that have room for a trial of a study in this folder.

    files: recipe files, which must be equal on all machines.
    Raises WorkerError if Ray is not installed, the cluster cannot be reached, no machine has room for a trial, or a
    machine differs from this one.
    """

    has_room = True  # trials that do not fit wait in Ray's own queue

    def __init__(self, cluster: Cluster, folder: Path, files: Sequence[Path]) -> None:
        self._cluster = cluster
        self._token = folder.resolve() / ".machines"
        self._files = [file.resolve() for file in files]
        self._tasks: dict[Any, str] = {}  # from Ray's reference of a running trial to its name
        self._connect()
        try:
            self._token.write_text(uuid4().hex)  # new content, which a copy of the folder does not have
            self._local = environment_of(self._files, self._token)
            self._check_machines()
        except BaseException:
            self.close()
            raise

    def start(self, job: Job) -> None:
        """Put a job into Ray's queue. Raises RecipeError if it cannot be pickled."""
        data = job.pickled()
        remote = self._ray.remote(
            num_cpus=self._cluster.cpus, num_gpus=self._cluster.gpus, max_retries=self._cluster.retries
        )
        location = StudyLocation(
            import_path=tuple(sys.path), working_directory=Path.cwd(), token=self._token, files=tuple(self._files)
        )
        task = remote(run_remote).remote(job.name, data, location, self._local, self._cluster.cpus)
        self._tasks[task] = job.name

    def next_result(self) -> tuple[str, JobResult]:
        """Wait until one of the started jobs ends."""
        (task, *_), _pending = self._ray.wait(list(self._tasks), num_returns=1)
        name = self._tasks.pop(task)
        try:
            seconds, error = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # `run_remote` itself failed, for example in an import
            return name, JobResult(error=WorkerError(_last_line(error)))
        except self._ray.exceptions.RayError as error:
            reason = f"its process or machine was lost {self._cluster.retries + 1} times: {first_line(error)}"
            return name, JobResult(error=WorkerError(f"{reason}; run it again to resume from its last checkpoint"))
        return name, JobResult(seconds=seconds, error=None if error is None else unpack_error(error))

    def close(self) -> None:
        """Stop the jobs that are still running, and disconnect from the cluster unless it was connected before."""
        with suppress(self._ray.exceptions.RayError):
            for task in self._tasks:
                self._ray.cancel(task, force=True)
            if self._tasks:
                self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=CANCEL_TIMEOUT)
        self._tasks.clear()
        self._token.unlink(missing_ok=True)
        if self._connected_here:
            self._ray.shutdown()

    def _connect(self) -> None:
        """Import Ray and connect it to the cluster. Raises WorkerError if either fails."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends no usage data; Ray reads it when it is imported
        try:
            import ray  # late: an optional package that takes seconds to import
        except ImportError as error:
            raise WorkerError("a study on a cluster needs Ray; pip install 'kdkit[cluster]'") from error
        self._ray: Any = ray
        self._connected_here = not ray.is_initialized()  # otherwise the script connected it, and may still need it
        if not self._connected_here:
            return
        address = self._cluster.address
        try:
            if address != "auto":
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()  # Ray retries for minutes
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        except (OSError, RuntimeError, ValueError) as error:
            raise WorkerError(
                f"no Ray cluster can be reached at {address!r}: {first_line(error)}; start one with "
                "`ray start --head --include-dashboard=false --disable-usage-stats`, and on each other machine "
                "`ray start --address=HOST:PORT`"
            ) from error

    def _check_machines(self) -> None:
        """Raise WorkerError if no machine has room for a trial, or if one that has room differs from this machine."""
        need = {"CPU": self._cluster.cpus, "GPU": self._cluster.gpus}
        nodes = [
            node
            for node in self._ray.nodes()
            if node["Alive"] and all(node["Resources"].get(key, 0) >= count for key, count in need.items())
        ]
        if not nodes:
            raise WorkerError(
                f"no machine of the cluster has {need['CPU']} CPUs and {need['GPU']} GPUs for a trial; use fewer"
            )
        affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        # Without CPUs, so that a probe runs even if other studies use the machine.
        probe = self._ray.remote(num_cpus=0, max_retries=0)(environment_of)
        tasks = [
            probe.options(scheduling_strategy=affinity(node["NodeID"], soft=False)).remote(self._files, self._token)
            for node in nodes
        ]
        for node, task in zip(nodes, tasks, strict=True):
            machine = f"machine {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                mismatch = difference(self._local, self._ray.get(task, timeout=PROBE_TIMEOUT))
            except (self._ray.exceptions.RayError, ImportError) as error:
                raise WorkerError(
                    f"{machine} cannot run kdkit: {_last_line(error)}; install the same packages there as here"
                ) from error
            if mismatch is not None:
                raise WorkerError(f"{machine} {mismatch}")


def _last_line(error: BaseException) -> str:
    """Return the last line of an error, which has the cause if the text is a remote traceback."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
