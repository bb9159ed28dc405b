"""Run jobs in this process, one after another."""

import warnings

from kdkit.errors import KdkitError, WorkerError
from kdkit.study.workers.job import Job, JobResult
from kdkit.study.workers.processes import Processes
from kdkit.utils.devices import is_kernel_error


class InProcess:
    """Runs one job at a time in this process.

    After a kernel fails, CUDA raises its error in every later call of the process, so a child process runs the other
    jobs.
    """

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._child: Processes | None = None

    @property
    def has_room(self) -> bool:
        """Whether a job can be started."""
        return not self._jobs if self._child is None else self._child.has_room

    def start(self, job: Job) -> None:
        """Remember the job for `next_result`. Raises WorkerError if it needs a child process and cannot have one."""
        if self._child is None:
            self._jobs.append(job)
            return
        try:
            self._child.start(job)
        except KdkitError as error:
            raise WorkerError(
                f"a kernel failed in an earlier trial, so this process can no longer use its device, and no other "
                f"process can run this trial: {error}; or run the same command or script again, which resumes it"
            ) from error

    def next_result(self) -> tuple[str, JobResult]:
        """Run the job that was started, or wait for the child process that runs it."""
        if self._child is not None:
            return self._child.next_result()
        job = self._jobs.pop()
        result = job.run()
        if result.error is not None and is_kernel_error(result.error):
            warnings.warn(
                f"a kernel failed in trial {job.name!r}, so this process can no longer use its device: a child process "
                "runs the other trials, and this process keeps its memory on the device until it ends",
                stacklevel=2,
            )
            self._child = Processes(1)
        return job.name, result

    def close(self) -> None:
        """End the child process, if there is one."""
        if self._child is not None:
            self._child.close()
