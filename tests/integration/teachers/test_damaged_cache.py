"""A run over a damaged teacher cache, or without a usable one, ends with the bits of an undisturbed run."""

import os
import signal
import warnings
from textwrap import dedent

import numpy as np
import pytest
import torch
from torch import nn

import kdkit
from kdkit import CacheSettings, Net
from kdkit.errors import KdkitError
from kdkit.teachers.cache import row_files
from tests.helpers.callbacks import Recorder
from tests.helpers.command_line import environment
from tests.helpers.processes import ForkedPython, wait_until
from tests.helpers.stages import copied, epoch_terms, same
from tests.helpers.teacher_cache import ROWS, NoisyData, TeacherCalls, make_recipe


def run(out, recipe=None, **options):
    """Return the student's weights, the history, the notices and the warnings of a run without an audit."""
    recorder = Recorder()
    recipe = recipe or make_recipe(taps=True, teacher_cache=CacheSettings(audit=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = kdkit.run(recipe, out=out, device="cpu", callbacks=[recorder], **options)
    texts = [str(warning.message) for warning in caught]
    notices = [notice for stage in recorder.stages for notice in stage.notices]
    return copied(result.student.module), epoch_terms(result.history), notices, texts


def entry_of(folder):
    (meta,) = (folder / "teacher_cache").glob("*/meta.json")
    return meta.parent


@pytest.mark.parametrize("memory", [2**28, 0], ids=["held in memory", "read by row"])
def test_a_run_over_damaged_outputs_ends_with_the_same_bits_and_a_warning(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "_MEMORY_BYTES", memory)
    weights, history, *_ = run(tmp_path / "first")
    entry = entry_of(tmp_path)
    generator = np.random.default_rng(0)
    for number in range(4):
        for name in ("output", "feature-0", "checksums"):
            content = bytearray((entry / name).read_bytes())
            content[generator.integers(len(content))] ^= 1 << generator.integers(8)
            (entry / name).write_bytes(content)
        repeated = run(tmp_path / f"repeated-{number}")
        assert same(repeated[0], weights)
        assert repeated[1] == history
        (warning,) = repeated[3]
        assert " of net 'teacher' were damaged and computed again" in warning
    assert run(tmp_path / "last")[3] == []  # the damaged outputs were written again


def test_only_batches_with_damaged_outputs_run_the_teacher(tmp_path, monkeypatch):
    calls = TeacherCalls(monkeypatch)
    run(tmp_path / "first")
    assert calls.samples() == ROWS
    file = entry_of(tmp_path) / "output"
    content = bytearray(file.read_bytes())
    content[-1] ^= 64
    file.write_bytes(content)
    run(tmp_path / "second")
    assert calls.samples() == calls.batch_size  # the whole batch, in which the damaged output was computed at first
    run(tmp_path / "third")
    assert calls.samples() == 0


@pytest.mark.parametrize("name", ["output", "checksums", "ids", "meta.json", "used"])
def test_a_run_over_a_truncated_entry_ends_with_the_same_bits(name, tmp_path):
    weights, history, *_ = run(tmp_path / "first")
    os.truncate(entry_of(tmp_path) / name, 3 if name != "used" else 0)
    repeated = run(tmp_path / "second")
    assert same(repeated[0], weights)
    assert repeated[1] == history


def test_with_a_folder_in_the_place_of_the_lock_the_run_has_the_same_bits_and_a_notice(tmp_path, monkeypatch):
    calls = TeacherCalls(monkeypatch)
    weights, history, *_ = run(tmp_path / "usable" / "run")
    calls.calls.clear()
    (tmp_path / "unusable" / "teacher_cache" / ".lock").mkdir(parents=True)
    other = run(tmp_path / "unusable" / "run")
    assert same(other[0], weights)
    assert other[1] == history
    (notice,) = [notice for notice in other[2] if "cached" in notice]
    assert notice.startswith("teacher outputs are cached for this run only: ")
    assert "teacher_cache cannot be written: [Errno 21] Is a directory" in notice
    assert calls.samples() == ROWS  # and not at every step
    assert not (tmp_path / "unusable" / "run" / "teacher_cache").exists()


def test_with_a_read_only_file_system_the_outputs_are_cached_for_the_run_only(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    weights, *_ = run(tmp_path / "first")
    monkeypatch.setattr("kdkit.teachers.cache.folder.CacheFolder._make_room", refuse)
    other = run(tmp_path / "second")
    assert any("not cached: " in notice and "Read-only file system" in notice for notice in other[2])
    assert same(other[0], weights)


class WrongForSome(nn.Module):
    """Returns NaN for samples whose first input is large."""

    def __init__(self, value):
        super().__init__()
        self.head, self.value = nn.Linear(6, 3), value

    def forward(self, inputs):
        return torch.where(inputs[:, :1] > 1.5, self.value, self.head(inputs))


def masked_mean_square(student, target):
    """Leave out classes and samples whose target is not finite."""
    finite = target.isfinite()
    return (student - target.where(finite, 0)).square().where(finite, 0).mean()


@pytest.mark.parametrize(("value", "cached"), [(torch.nan, False), (torch.inf, False), (-torch.inf, True)])
def test_nan_is_not_cached_and_logits_of_masked_classes_are(value, cached, tmp_path):
    torch.manual_seed(0)
    teacher = Net("teacher", WrongForSome(value), trained=True)
    data = NoisyData()
    student = Net("student", nn.Linear(6, 3))
    stage = kdkit.Stage({student: kdkit.Match(teacher, masked_mean_square)}, kdkit.Training(epochs=3, batch_size=8))
    batch = data.train.batch(torch.arange(ROWS), 0)
    wrong = int((batch.inputs[:, 0] > 1.5).sum())
    assert 0 < wrong < ROWS
    texts = run(tmp_path / "run", kdkit.Recipe(data=data, schedule=[stage]))[3]
    checksums = np.fromfile(entry_of(tmp_path) / "checksums", "<u4")
    assert np.count_nonzero(checksums) == (ROWS if cached else ROWS - wrong)
    warned = [text for text in texts if f"outputs of net 'teacher' are NaN or infinite for {wrong} samples" in text]
    assert len(warned) == (0 if cached else 1)


def test_a_teacher_that_returns_nan_ends_the_run_and_leaves_none_in_the_cache(tmp_path):
    for name in ("first", "second"):
        torch.manual_seed(0)
        recipe = make_recipe(teacher=Net("teacher", WrongForSome(torch.nan), trained=True))
        with pytest.raises(KdkitError, match=r"outputs of 'teacher' for samples .* are not finite numbers"):
            run(tmp_path / name, recipe)
    assert not torch.from_numpy(np.fromfile(entry_of(tmp_path) / "output", np.float32)).isnan().any()


RECIPE = """
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Recipe, Stage, TorchData, Training
from kdkit.losses import SoftTargets
from kdkit.teachers.cache import row_files

row_files._MEMORY_BYTES = int(os.environ["MEMORY"])


@kdkit.hookimpl
def step_ended(event):
    if (event.epoch, event.batch) == (1, 1):
        Path("waiting").touch()
        while not Path("go").exists():
            time.sleep(0.02)


def samples(count, seed):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def recipe():
    torch.manual_seed(0)
    student, source = Net("student", nn.Linear(6, 3)), Net("teacher", nn.Linear(6, 3), trained=True)
    return Recipe(
        data=TorchData(samples(32, 0), samples(6, 1), classes=("a", "b", "c")),
        schedule=[Stage({student: Match(source, SoftTargets())}, Training(epochs=3, batch_size=8))],
    )
"""


# The suite has time for each file and each reader once.
@pytest.mark.parametrize(
    ("memory", "name"),
    [
        pytest.param(2**28, "output", id="held in memory-output"),
        pytest.param(0, "checksums", id="read by row-checksums"),
        pytest.param(2**28, "checksums", marks=pytest.mark.slow, id="held in memory-checksums"),
        pytest.param(0, "output", marks=pytest.mark.slow, id="read by row-output"),
    ],
)
def test_a_run_whose_cache_entry_is_truncated_is_not_ended_by_a_signal(name, memory, tmp_path):
    (tmp_path / "mine.py").write_text(dedent(RECIPE))
    command = ["-m", "kdkit", "run", "mine.py", "--device", "cpu", "--out", "runs/run"]
    process = ForkedPython(command, tmp_path, environment(MEMORY=str(memory)))
    wait_until((tmp_path / "waiting").exists, process)
    os.truncate(entry_of(tmp_path / "runs") / name, 0)
    (tmp_path / "go").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, (process.returncode == -signal.SIGBUS, err)
    warned = "net 'teacher' is no longer cached: " in err and "output was truncated by another process" in err
    assert warned is (name == "output" and not memory), err
