"""Tests of how jobs share the GPUs of a machine, their memory, and the processes that use them."""

import pickle
from pathlib import Path

import pytest
import torch

from kdkit import KdkitError, RunOptions
from kdkit.engine.run_record import Origin
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.errors import CheckError
from kdkit.study.workers import processes
from kdkit.study.workers.child import run_pickled
from kdkit.study.workers.devices import SharedDevices
from kdkit.study.workers.job import Job, JobResult
from kdkit.study.workers.pickling import pack_error
from kdkit.study.workers.processes import Processes


def job(name: str, device: str = "auto", gpu: int | None = None) -> Job:
    options = RunOptions(device=device, device_data=0.6)
    return Job(name=name, folder=Path(name), recipe=print, arguments={}, origin=Origin(), options=options, gpu=gpu)


def start(devices: SharedDevices, names: str, device: str = "auto") -> list[int | None]:
    """Place and start jobs, and return their GPUs."""
    gpus = []
    for name in names:
        placed = devices.place(job(name, device))
        devices.start(placed)
        gpus.append(placed.gpu)
    return gpus


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_jobs_are_spread_over_the_gpus_in_turn(device):
    assert start(SharedDevices(5, gpus=3), "abcde", device) == [0, 1, 2, 0, 1]


def test_the_next_job_gets_the_gpu_with_the_fewest_running_jobs():
    devices = SharedDevices(4, gpus=2)
    start(devices, "abcd")
    devices.end("b", JobResult())
    assert start(devices, "e") == [1]
    devices.end("a", JobResult())
    devices.end("e", JobResult())
    devices.end("d", JobResult())
    assert start(devices, "fg") == [1, 0]


def test_jobs_share_one_gpu():
    assert start(SharedDevices(3, gpus=1), "abc") == [0, 0, 0]


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_a_device_that_the_user_chose_stays(device):
    placed = SharedDevices(2, gpus=4).place(job("a", device))
    assert (placed.gpu, placed.options.device) == (None, device)


def test_jobs_of_a_machine_without_gpus_get_none():
    assert start(SharedDevices(2, gpus=0), "ab") == [None, None]


@pytest.mark.parametrize(("device", "gpus", "share"), [("auto", 1, 0.15), ("auto", 2, 0.3), ("cuda:0", 2, 0.15)])
def test_the_memory_for_samples_is_divided_by_the_jobs_of_a_gpu(device, gpus, share):
    devices = SharedDevices(4, gpus)
    shares = []
    for name in "abcd":
        placed = devices.place(job(name, device))
        devices.start(placed)
        shares.append(placed.options.device_data)
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
def test_the_error_of_a_job_whose_memory_ran_out_has_the_number_of_jobs_that_shared_it(error):
    devices = SharedDevices(6, gpus=2)
    start(devices, "abcdef")
    results = [devices.end(name, JobResult(seconds=2.0, error=error)) for name in "ace"]
    # Also of the last one: the others took memory when its own ran out, or had just ended.
    for result in results:
        assert isinstance(result.error, KdkitError)
        assert str(result.error) == (
            f"{error}\nUp to 3 jobs shared this memory at the same time; use fewer (--jobs, or jobs=), and resume this "
            "one from its last checkpoint"
        )
        assert (result.seconds, result.error.__cause__) == (2.0, error)


def test_an_error_of_memory_of_a_job_that_was_alone_on_its_device_stays_as_it_is():
    devices, error = SharedDevices(2, gpus=2), KdkitError("stage 'net': out of memory while training")
    start(devices, "ab")
    assert devices.end("a", JobResult(error=error)).error is error


def test_other_errors_and_results_stay_as_they_are():
    devices, error = SharedDevices(2, gpus=1), KdkitError("another error")
    start(devices, "ab")
    assert devices.end("a", JobResult(error=error)).error is error
    assert devices.end("b", JobResult(seconds=1.0)) == JobResult(seconds=1.0)


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


class FakeChild:
    """A child process that ends a job at once, with an error if the job is named "bad"."""

    started: list["FakeChild"]

    def __init__(self, threads: int, gpu: int | None) -> None:
        self.gpu, self.alive, self.closed = gpu, True, False
        self.jobs: list[str] = []
        FakeChild.started.append(self)

    def call(self, data: bytes):
        name = pickle.loads(data).name
        self.jobs.append(name)
        return 0.0, pack_error(ValueError("no")) if name == "bad" else None

    def terminate(self) -> None:
        self.alive = False

    def wait(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def workers(monkeypatch):
    """Processes on a machine with two GPUs."""
    FakeChild.started = []
    monkeypatch.setattr(processes, "_Child", FakeChild)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return Processes(3)


def run_at_once(workers: Processes, *names: str) -> None:
    for name in names:
        workers.start(job(name))
    for _ in names:
        workers.next_result()


def test_a_process_runs_jobs_on_one_gpu(workers):
    run_at_once(workers, "a", "b", "c")
    run_at_once(workers, "d", "e", "f")
    assert [child.gpu for child in FakeChild.started] == [0, 1, 0]
    assert all(len(child.jobs) == 2 for child in FakeChild.started)


def test_a_process_whose_job_failed_on_a_gpu_is_replaced(workers):
    run_at_once(workers, "bad", "b")
    run_at_once(workers, "c", "d")
    failed, *others = FakeChild.started
    assert (failed.jobs, failed.alive, failed.closed) == (["bad"], False, True)
    assert [(child.gpu, len(child.jobs)) for child in others] == [(1, 2), (0, 1)]
