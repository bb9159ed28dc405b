"""The teacher cache with several processes, one of which is killed, and the command that lists its entries."""

import re
import shutil
import signal
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from tests.helpers.command_line import environment
from tests.helpers.processes import ForkedPython, wait_until

RECIPE = '''
"""A student of a teacher that logs each batch of the full size that it runs on."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Recipe, Stage, TorchData, Training
from kdkit.losses import SoftTargets
from kdkit.teachers.cache import store

if "EAGER" in os.environ:
    store._FLUSH_SECONDS = store._FLUSH_RATIO = 0  # flush after each batch


def teacher(inputs: Tensor) -> Tensor:
    if len(inputs) == 8:
        with Path(os.environ["LOG"]).open("a") as log:
            log.write("batch ")
    return 2 * inputs[:, :3] + 1


@kdkit.hookimpl
def step_ended(event: Any) -> None:
    if f"{event.epoch} {event.batch}" == os.environ.get("WAIT"):
        Path("waiting").touch()
        while not Path("go").exists():
            time.sleep(0.02)


def samples(count: int, seed: int) -> TensorDataset:
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def recipe() -> Recipe:
    student, source = Net("student", nn.Linear(6, 3)), Net("teacher", teacher, version="1")
    return Recipe(
        data=TorchData(samples(32, 0), samples(6, 1), classes=("a", "b", "c")),
        schedule=[Stage({student: Match(source, SoftTargets())}, Training(epochs=3, batch_size=8))],
    )
'''
BATCHES = 4  # in an epoch


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(dedent(RECIPE))
    return tmp_path


@pytest.fixture
def begin(folder):
    """Return a function that starts a run in a new process; all of them are killed after the test."""
    processes: list[ForkedPython] = []

    def start(name, **env):
        processes.append(start_run(folder, name, **env))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=30)


def start_run(folder: Path, name: str, **env: str) -> ForkedPython:
    command = ["-m", "kdkit", "run", "mine.py", "--device", "cpu", "--out", f"runs/{name}"]
    return ForkedPython(command, folder, environment(LOG=f"{name}.log", **env))


@pytest.fixture
def run_in_process(kdkit_here, folder, monkeypatch):
    """Return a function that runs the recipe in this process."""

    def run(name, *options):
        monkeypatch.setenv("LOG", f"{name}.log")
        result = kdkit_here("run", "mine.py", "--device", "cpu", "-q", "--out", f"runs/{name}", *options)
        assert result.code == 0, result.err

    return run


def wait_for_end(process: ForkedPython) -> str:
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return out


def teacher_batches(folder: Path, name: str) -> int:
    """Return the number of full batches that the teacher ran on."""
    log = folder / f"{name}.log"
    return log.read_text().count("batch") if log.exists() else 0


def rows_on_disk(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which rows are written, (rows,) bool, and all rows of outputs, (rows, classes)."""
    (entry,) = (meta.parent for meta in (folder / "runs" / "teacher_cache").glob("*/meta.json"))
    written = torch.frombuffer(bytearray((entry / "checksums").read_bytes()), dtype=torch.int32) != 0
    return written, torch.frombuffer(bytearray((entry / "output").read_bytes()), dtype=torch.float32).view(32, 3)


def test_two_processes_share_outputs_and_one_of_them_writes(folder, begin, run_in_process):
    early = begin("early", WAIT="0 1")
    wait_until((folder / "waiting").exists, early)
    wait_for_end(begin("second"))  # nothing was flushed yet: its teacher runs at every step, and it writes nothing
    assert teacher_batches(folder, "second") == 3 * BATCHES
    assert not rows_on_disk(folder)[0].any()
    (folder / "go").touch()
    wait_for_end(early)
    assert teacher_batches(folder, "early") == BATCHES
    written, output = rows_on_disk(folder)
    assert written.all()
    run_in_process("late")
    assert teacher_batches(folder, "late") == 0
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(output, 2 * inputs[:, :3] + 1)


def test_a_process_that_is_killed_leaves_no_row_without_its_data(folder, begin, run_in_process):
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    killed = begin("run", WAIT="0 2", EAGER="1")
    wait_until((folder / "waiting").exists, killed)
    survivor = begin("survivor", WAIT="0 0")  # reads while the first has the lock, and writes once that is killed
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    written, output = rows_on_disk(folder)
    assert int(written.sum()) == 3 * 8
    assert torch.equal(output[written], (2 * inputs[:, :3] + 1)[written])
    (folder / "go").touch()
    wait_for_end(survivor)
    assert teacher_batches(folder, "survivor") == BATCHES - 3
    assert rows_on_disk(folder)[0].all()
    shutil.rmtree(folder / "runs" / "run")
    run_in_process("run")
    assert teacher_batches(folder, "run") == 3  # the batches from before it was killed


def test_the_command_lists_and_deletes_entries(kdkit_here, run_in_process):
    run_in_process("first")
    listed = kdkit_here("cache")
    assert listed.code == 0, listed.err
    assert re.search(r"teacher\W+inputs.*32 of 32", listed.out)
    assert kdkit_here("cache", "runs/teacher_cache", "--keep", 1).out == listed.out
    wrong = kdkit_here("cache", "--delete", "teachr")
    assert (wrong.code, "did you mean 'teacher'" in wrong.err) == (2, True)
    deleted = kdkit_here("cache", "--delete", "teacher")
    assert "deleted 1 entry" in deleted.out
    assert "there are no cached outputs in runs/teacher_cache" in deleted.out
    nowhere = kdkit_here("cache", "elsewhere")
    assert (nowhere.code, "there is no folder elsewhere" in nowhere.err) == (2, True)


def test_outputs_are_cached_in_the_folder_of_the_option_or_not_at_all(kdkit_here, run_in_process, folder):
    run_in_process("first", "--teacher-cache", "off")
    assert not (folder / "runs" / "teacher_cache").exists()
    run_in_process("second", "--teacher-cache", "shared", "--teacher-cache-size", 0.5)
    assert "32 of 32" in kdkit_here("cache", "shared").out
    assert kdkit_here("cache", "shared", "--keep", 0).out.count("no cached outputs") == 1
    refused = kdkit_here("run", "mine.py", "--teacher-cache-size", 0, "--out", "runs/third")
    assert refused.code == 2
    assert "teacher-cache-size" in refused.err


def test_a_run_called_teacher_cache_has_its_cache_under_another_name(kdkit_here, run_in_process):
    run_in_process("teacher_cache")
    assert "32 of 32" in kdkit_here("cache", "runs/shared-teacher_cache").out
