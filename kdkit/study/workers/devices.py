"""Divide the devices of this machine among the jobs that run on it at the same time."""

from collections import Counter
from dataclasses import dataclass, replace
from math import ceil

from kdkit.errors import KdkitError
from kdkit.study.workers.job import Job, JobResult
from kdkit.utils.memory import is_out_of_memory


class SharedDevices:
    """The devices of this machine, and the jobs that run on each of them.

    jobs: how many run at once. gpus: the number of CUDA devices. Jobs with the device "auto" or "cuda" are distributed
    over them.
    """

    def __init__(self, jobs: int, gpus: int) -> None:
        self.jobs, self.gpus = jobs, gpus
        self._running: dict[str, _RunningJob] = {}  # by name

    def place(self, job: Job) -> Job:
        """Return a job with the GPU that has the fewest running jobs, and with its share of the memory for samples."""
        gpu, sharing = None, self.jobs
        if self.gpus and job.options.device in ("auto", "cuda"):
            counts = Counter(running.device for running in self._running.values())
            gpu = min(range(self.gpus), key=lambda index: counts[f"cuda:{index}"])  # the first one on a tie
            sharing = ceil(self.jobs / self.gpus)
        # Divided by all jobs that the device may get, because later jobs need as much memory as the first one.
        return replace(job, gpu=gpu, options=replace(job.options, device_data=job.options.device_data / sharing))

    def start(self, job: Job) -> None:
        """Record the start of a job that was placed."""
        device = job.options.device if job.gpu is None else f"cuda:{job.gpu}"
        self._running[job.name] = _RunningJob(device)
        neighbours = [running for running in self._running.values() if running.device == device]
        for running in neighbours:
            running.most = max(running.most, len(neighbours))

    def end(self, name: str, result: JobResult) -> JobResult:
        """Return the result of a job that ended. An out-of-memory error gets the number of jobs in the memory."""
        most, error = self._running.pop(name).most, result.error
        # The text is tested too, because a recipe check reports an allocator error as one of several problems.
        if error is None or most == 1 or not ("out of memory" in str(error) or is_out_of_memory(error)):
            return result
        explained = KdkitError(
            f"{error}\nUp to {most} jobs shared this memory at the same time; use fewer (--jobs, or jobs=), and resume "
            "this one from its last checkpoint"
        )
        explained.__cause__ = error
        return replace(result, error=explained)


@dataclass(slots=True)
class _RunningJob:
    """A running job. most: the most jobs that were on its device at once, including itself."""

    device: str
    most: int = 1
