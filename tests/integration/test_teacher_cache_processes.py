"""Recorded answers under several processes, one of which is killed, and the command that lists them."""

import re
import shutil
import signal
import time
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from tests.helpers.command_line import environment
from tests.helpers.processes import ForkedPython

RECIPE = '''
"""A student of a teacher that writes down how many samples it is asked for."""

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
    store._SECONDS = store._PAUSES = 0  # flush after each batch


def teacher(inputs: Tensor) -> Tensor:
    if len(inputs) == 8:
        with Path(os.environ["WHO"]).open("a") as log:
            log.write("asked ")
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
    """Begin a run in a process of its own; none of them outlives the test."""
    begun: list[ForkedPython] = []

    def one(who, **env):
        begun.append(process_of(folder, who, **env))
        return begun[-1]

    yield one
    for each in begun:
        each.kill()
        each.communicate(timeout=30)


def process_of(folder: Path, who: str, **env: str) -> ForkedPython:
    command = ["-m", "kdkit", "run", "mine.py", "--device", "cpu", "--out", f"runs/{who}"]
    return ForkedPython(command, folder, environment(WHO=f"{who}.log", **env))


@pytest.fixture
def here(kdkit_here, folder, monkeypatch):
    """Run in this process, to the end."""

    def run(who, *options):
        monkeypatch.setenv("WHO", f"{who}.log")
        said = kdkit_here("run", "mine.py", "--device", "cpu", "-q", "--out", f"runs/{who}", *options)
        assert said.code == 0, said.err

    return run


def until_it_waits(folder: Path, process: ForkedPython) -> None:
    deadline = time.monotonic() + 90
    while not (folder / "waiting").exists():
        assert process.poll() is None, process.output(2)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(process: ForkedPython) -> str:
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return out


def asked(folder: Path, who: str) -> int:
    log = folder / f"{who}.log"
    return log.read_text().count("asked") if log.exists() else 0


def known_rows(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which rows are known on the disk, and what stands in all of them."""
    (place,) = (each.parent for each in (folder / "runs" / "teacher_cache").glob("*/meta.json"))
    known = torch.frombuffer(bytearray((place / "known").read_bytes()), dtype=torch.uint8).bool()
    return known, torch.frombuffer(bytearray((place / "output").read_bytes()), dtype=torch.float32).view(32, 3)


def test_two_processes_share_answers_and_one_of_them_writes(folder, begin, here):
    early = begin("early", WAIT="0 1")
    until_it_waits(folder, early)
    ended(begin("beside"))  # nothing was flushed yet: it asks by itself, and records nothing
    assert asked(folder, "beside") == 3 * BATCHES
    assert not known_rows(folder)[0].any()
    (folder / "go").touch()
    ended(early)
    assert asked(folder, "early") == BATCHES
    known, output = known_rows(folder)
    assert known.all()
    here("late")
    assert asked(folder, "late") == 0
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(output, 2 * inputs[:, :3] + 1)


def test_a_process_that_is_killed_leaves_no_row_without_its_data(folder, begin, here):
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    killed = begin("run", WAIT="0 2", EAGER="1")
    until_it_waits(folder, killed)
    beside = begin("beside", WAIT="0 0")  # reads while the other has the lock, and writes once it is killed
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    known, output = known_rows(folder)
    assert int(known.sum()) == 3 * 8
    assert torch.equal(output[known], (2 * inputs[:, :3] + 1)[known])
    (folder / "go").touch()
    ended(beside)
    assert asked(folder, "beside") == BATCHES - 3
    assert known_rows(folder)[0].all()
    shutil.rmtree(folder / "runs" / "run")
    here("run")
    assert asked(folder, "run") == 3  # those from before it was killed


def test_answers_are_listed_and_deleted_by_the_command(kdkit_here, here):
    here("one")
    said = kdkit_here("cache")
    assert said.code == 0, said.err
    assert re.search(r"teacher\W+inputs.*32 of 32", said.out)
    assert kdkit_here("cache", "runs/teacher_cache", "--keep", 1).out == said.out
    wrong = kdkit_here("cache", "--delete", "teachr")
    assert (wrong.code, "did you mean 'teacher'" in wrong.err) == (2, True)
    deleted = kdkit_here("cache", "--delete", "teacher")
    assert "deleted 1 of them" in deleted.out
    assert "no answers are recorded in runs/teacher_cache" in deleted.out
    nowhere = kdkit_here("cache", "elsewhere")
    assert (nowhere.code, "there is no folder elsewhere" in nowhere.err) == (2, True)


def test_the_command_says_where_answers_are_recorded_or_that_they_are_not(kdkit_here, here, folder):
    here("one", "--teacher-cache", "off")
    assert not (folder / "runs" / "teacher_cache").exists()
    here("two", "--teacher-cache", "shared", "--teacher-cache-size", 0.5)
    assert "32 of 32" in kdkit_here("cache", "shared").out
    assert kdkit_here("cache", "shared", "--keep", 0).out.count("no answers") == 1
    refused = kdkit_here("run", "mine.py", "--teacher-cache-size", 0, "--out", "runs/three")
    assert refused.code == 2
    assert "teacher-cache-size" in refused.err


def test_a_run_called_answers_keeps_them_elsewhere(kdkit_here, here):
    here("teacher_cache")
    assert "32 of 32" in kdkit_here("cache", "runs/recorded-teacher_cache").out
