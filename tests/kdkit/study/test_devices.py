"""Tests of how jobs share the GPUs of a machine, their memory, and the processes that use them."""

import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch

from kdkit import KdkitError, RunOptions
from kdkit.engine.run_record import Origin
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.errors import CheckError
from kdkit.study.workers import processes
from kdkit.study.workers.child import run_pickled
from kdkit.study.workers.job import Job, JobResult
from kdkit.study.workers.pickling import pack_error
from kdkit.study.workers.processes import Processes


def job(name: str, device: str = "auto", gpu: int | None = None) -> Job:
    options = RunOptions(device=device, device_data=0.6)
    return Job(name=name, folder=Path(name), recipe=print, arguments={}, origin=Origin(), options=options, gpu=gpu)


class FakeChild:
    """A child process that ends a job at once, with the error in `errors` for the job's name."""

    started: list["FakeChild"]
    errors: dict[str, Exception]

    def __init__(self, threads: int, gpu: int | None) -> None:
        self.gpu, self.alive, self.closed = gpu, True, False
        self.jobs: list[Job] = []
        FakeChild.started.append(self)

    def call(self, data: bytes):
        started = pickle.loads(data)
        self.jobs.append(started)
        error = self.errors.get(started.name)
        return 2.0, None if error is None else pack_error(error)

    def terminate(self) -> None:
        self.alive = False

    def wait(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def make_workers(monkeypatch):
    """Make processes for a number of jobs on a machine with a number of GPUs."""
    FakeChild.started, FakeChild.errors = [], {}
    monkeypatch.setattr(processes, "_Child", FakeChild)

    def make(jobs: int, gpus: int) -> Processes:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        return Processes(jobs)

    return make


def start(workers: Processes, names: str, device: str = "auto") -> list[Job]:
    """Start jobs, and return them as their processes got them. They count as running until their results are read."""
    for name in names:
        workers.start(job(name, device))
    end_of = {name: thread for name, (_child, thread) in workers._busy.items()}
    for name in names:
        end_of[name].join()
    jobs = {started.name: started for child in FakeChild.started for started in child.jobs}
    return [jobs[name] for name in names]


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_jobs_are_spread_over_the_gpus_in_turn(device, make_workers):
    assert [started.gpu for started in start(make_workers(5, gpus=3), "abcde", device)] == [0, 1, 2, 0, 1]


def test_the_next_job_gets_the_gpu_with_the_fewest_running_jobs(make_workers):
    workers = make_workers(4, gpus=2)
    start(workers, "abcd")
    ended = [workers.next_result()[0] for _ in range(2)]
    left = Counter(started.gpu for child in FakeChild.started for started in child.jobs if started.name not in ended)
    first, second = (started.gpu for started in start(workers, "ef"))
    assert left[first] <= left[1 - first]
    left[first] += 1
    assert left[second] <= left[1 - second]


def test_jobs_share_one_gpu(make_workers):
    assert [started.gpu for started in start(make_workers(3, gpus=1), "abc")] == [0, 0, 0]


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_a_device_that_the_user_chose_stays(device, make_workers):
    (started,) = start(make_workers(2, gpus=4), "a", device)
    assert (started.gpu, started.options.device) == (None, device)


def test_jobs_of_a_machine_without_gpus_get_none(make_workers):
    assert [started.gpu for started in start(make_workers(2, gpus=0), "ab")] == [None, None]


@pytest.mark.parametrize(("device", "gpus", "share"), [("auto", 1, 0.15), ("auto", 2, 0.3), ("cuda:0", 2, 0.15)])
def test_the_memory_for_samples_is_divided_by_the_jobs_of_a_gpu(device, gpus, share, make_workers):
    shares = [started.options.device_data for started in start(make_workers(4, gpus), "abcd", device)]
    assert shares == [share] * 4  # also of the first one, which runs alone at its start


@pytest.mark.parametrize(
    "error",
    [
        KdkitError("stage 'net': out of memory while training in batches of 8"),
        CheckError(["net 'student' fails: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"]),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_the_error_of_a_job_whose_memory_ran_out_has_the_number_of_jobs_that_shared_it(error, make_workers):
    workers, FakeChild.errors = make_workers(6, gpus=2), {"a": error}
    start(workers, "a")
    _name, result = workers.next_result()
    assert isinstance(result.error, KdkitError)
    assert str(result.error) == (
        f"{error}\nUp to 3 jobs may share this memory at the same time; use fewer (--jobs, or jobs=), and resume this "
        "one from its last checkpoint"
    )
    assert result.seconds == 2.0
    assert type(result.error.__cause__) is type(error)


def test_an_error_of_memory_of_a_job_that_was_alone_on_its_device_stays_as_it_is(make_workers):
    workers, FakeChild.errors = make_workers(2, gpus=2), {"a": KdkitError("stage 'net': out of memory while training")}
    start(workers, "a")
    assert str(workers.next_result()[1].error) == "stage 'net': out of memory while training"


def test_other_errors_and_results_stay_as_they_are(make_workers):
    workers, FakeChild.errors = make_workers(2, gpus=1), {"a": KdkitError("another error")}
    start(workers, "ab")
    results = dict(workers.next_result() for _ in "ab")
    assert str(results["a"].error) == "another error"
    assert results["b"] == JobResult(seconds=2.0)


def test_a_child_process_makes_the_gpu_of_a_job_its_current_device(tmp_path, monkeypatch):
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for gpu in (None, 1):
        _seconds, error = run_pickled(pickle.dumps(job(str(tmp_path / "run"), "cpu", gpu)))
        assert "RecipeError" in error.message  # `print` returns no recipe: the job did run
    assert chosen == [1]


def test_a_run_can_be_resumed_on_another_gpu(tmp_path):
    RunFolder.create(tmp_path / "run", {"device": "cuda:1", "seed": 0}, None)
    RunFolder.reopen(tmp_path / "run", {"device": "cuda:0", "seed": 0})


def run_at_once(workers: Processes, *names: str) -> None:
    for name in names:
        workers.start(job(name))
    for _ in names:
        workers.next_result()


def test_a_process_runs_jobs_on_one_gpu(make_workers):
    workers = make_workers(3, gpus=2)
    run_at_once(workers, "a", "b", "c")
    run_at_once(workers, "d", "e", "f")
    assert [child.gpu for child in FakeChild.started] == [0, 1, 0]
    assert all(len(child.jobs) == 2 for child in FakeChild.started)


def test_a_process_whose_job_failed_on_a_gpu_is_replaced(make_workers):
    workers, FakeChild.errors = make_workers(3, gpus=2), {"bad": ValueError("no")}
    run_at_once(workers, "bad", "b")
    run_at_once(workers, "c", "d")
    failed, *others = FakeChild.started
    assert ([started.name for started in failed.jobs], failed.alive, failed.closed) == (["bad"], False, True)
    assert [(child.gpu, len(child.jobs)) for child in others] == [(1, 2), (0, 1)]
