"""The machines of a Ray cluster that run cells, all in one folder that they share."""

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
from kdkit.study.workers.environment import conditions, difference
from kdkit.study.workers.job import Job, JobResult
from kdkit.study.workers.pickling import packed, unpacked_error
from kdkit.study.workers.remote import Place, run_there

LISTENING = 10.0  # seconds for a cluster to answer
PROBING = 120.0  # seconds for a machine to start a process and import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A Ray cluster that is there already.

    address: "auto" for the one that this machine belongs to (`ray start`, or RAY_ADDRESS), else "host:port".
    cpus: of each cell, which are its threads. gpus: of each cell, a whole number or a share of one.
    retries: how often a cell is begun again, from its last epoch, where its process or its machine was lost.

    Raises RecipeError for an address or numbers that cannot be.
    """

    address: str = "auto"
    cpus: int = 1
    gpus: float = 0
    retries: int = 3

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if self.address != "auto" and (not port.isdigit() or not host or "/" in host):
            raise RecipeError(f"the address of a cluster is 'auto' or 'host:port'; got {self.address!r}")
        for name, least in (("cpus", 1), ("gpus", 0), ("retries", 0)):
            value, kinds = getattr(self, name), (int, float) if name == "gpus" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
                raise RecipeError(f"{name} of a cluster is a number of at least {least}; got {value!r}")


class RayWorkers:
    """The machines of a cluster that can take a cell, found fit for a study in this folder.

    files: of recipes, which must be the same everywhere.
    Raises WorkerError where there is no Ray, no cluster, no machine with room for a cell, or one that is not like this.
    """

    room = True  # what does not fit waits in Ray's own queue

    def __init__(self, cluster: Cluster, folder: Path, files: Sequence[Path]) -> None:
        self._cluster = cluster
        self._token = folder.resolve() / ".machines"
        self._files = [file.resolve() for file in files]
        self._running: dict[Any, str] = {}
        self._ray, self._ours = _connected(cluster.address)
        try:
            self._token.write_text(uuid4().hex)
            self._here = conditions(self._files, self._token)
            self._require_fit()
        except BaseException:
            self.close()
            raise

    def begin(self, work: Job) -> None:
        """Put a cell in the queue. Raises RecipeError where it cannot be brought to another machine."""
        data = packed(work, f"cell {work.name!r}")
        chosen = self._ray.remote(
            num_cpus=self._cluster.cpus, num_gpus=self._cluster.gpus, max_retries=self._cluster.retries
        )
        place = Place(path=tuple(sys.path), folder=Path.cwd(), token=self._token, files=tuple(self._files))
        task = chosen(run_there).remote(work.name, data, place, self._here, self._cluster.cpus)
        self._running[task] = work.name

    def next_ended(self) -> tuple[str, JobResult]:
        """Wait until one of those that were begun has ended, here or there."""
        (task, *_), _rest = self._ray.wait(list(self._running), num_returns=1)
        name = self._running.pop(task)
        try:
            seconds, error = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # the machine could not even begin
            return name, JobResult(error=WorkerError(str(error).strip().splitlines()[-1]))
        except self._ray.exceptions.RayError as lost:
            said = f"its process or machine was lost in each of {self._cluster.retries + 1} tries: {first_line(lost)}"
            return name, JobResult(error=WorkerError(f"{said}; ask for the same again to go on from its last epoch"))
        return name, JobResult(seconds=seconds, error=None if error is None else unpacked_error(error))

    def close(self) -> None:
        """Stop what is still running, and leave the cluster as it was found."""
        with suppress(self._ray.exceptions.RayError):
            for task in self._running:
                self._ray.cancel(task, force=True)
            if self._running:
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=10.0)
        self._running.clear()
        self._token.unlink(missing_ok=True)
        if self._ours:
            self._ray.shutdown()

    def _require_fit(self) -> None:
        need = {"CPU": self._cluster.cpus, "GPU": self._cluster.gpus}
        nodes = [
            node
            for node in self._ray.nodes()
            if node["Alive"] and all(node["Resources"].get(key, 0) >= count for key, count in need.items())
        ]
        if not nodes:
            raise WorkerError(
                f"no machine of the cluster has {need['CPU']} CPUs and {need['GPU']} GPUs for a cell; ask for fewer"
            )
        on = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        probe = self._ray.remote(num_cpus=0, max_retries=0)(conditions)
        asked = [
            probe.options(scheduling_strategy=on(node["NodeID"], soft=False)).remote(self._files, self._token)
            for node in nodes
        ]
        for node, each in zip(nodes, asked, strict=True):
            machine = f"machine {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                unlike = difference(self._here, self._ray.get(each, timeout=PROBING))
            except (self._ray.exceptions.RayError, ImportError) as error:
                reason = str(error).strip().splitlines()[-1]
                raise WorkerError(f"{machine} cannot run kdkit: {reason}; install it there as it is here") from error
            if unlike is not None:
                raise WorkerError(f"{machine} {unlike}")


def _connected(address: str) -> tuple[Any, bool]:
    """Return Ray, connected to a cluster, and whether it is for us to disconnect it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody; read as Ray is imported
    try:
        import ray  # an extra, and slow
    except ImportError as error:
        raise WorkerError("a study on a cluster needs Ray; pip install 'kdkit[cluster]'") from error
    if ray.is_initialized():
        return ray, False
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=LISTENING).close()  # Ray itself tries for minutes
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (OSError, RuntimeError, ValueError) as error:
        raise WorkerError(
            f"no Ray cluster is reached at {address!r}: {first_line(error)}; start one with "
            "`ray start --head --include-dashboard=false --disable-usage-stats`, and on each other machine "
            "`ray start --address=HOST:PORT`"
        ) from error
    return ray, True
