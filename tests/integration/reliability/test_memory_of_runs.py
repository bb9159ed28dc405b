"""The memory of a run: its peak on a GPU is recorded, and activations that are recomputed need less of it."""

import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.optim import Adam

import kdkit
from kdkit import AverageWeights, Match, Net, Optimizer, Recipe, Stage, Tap
from kdkit.cli.plan import show_plan
from kdkit.engine.display.console import ConsoleCallback
from kdkit.losses import Hint
from kdkit.utils import memory
from tests.helpers.callbacks import KillAtStep, Recorder, kill_run, killed_and_resumed
from tests.helpers.stages import Small, assert_same_results, data, three, training, truth

MEBIBYTE = 2**20


def one_net():
    return kdkit.Recipe(data=three().data, schedule=[three().stages[0]])


def recomputed(names):
    """Return a recipe of a student with an EMA, dropout and a tap in a module that is recomputed."""
    teacher, student = Net("teacher", nn.Sequential(Small())), Net("student", nn.Sequential(Small()), recompute=names)
    hint = Match(teacher, Hint(), student=Tap(student.module[0].norm), target=Tap(teacher.module[0].norm))
    options = training(ema=AverageWeights(decay=0.8), optimizer=Optimizer(Adam, lr=0.01), epochs=3)
    return Recipe(data=data(), schedule=[Stage({teacher: truth()}, options), Stage({student: truth() + hint}, options)])


def summary_of(folder):
    return json.loads((folder / "1-teacher" / "stage.json").read_text())


def test_a_run_on_the_cpu_records_no_peak_memory(tmp_path):
    recorder, out = Recorder(), io.StringIO()
    result = kdkit.run(
        one_net, out=tmp_path / "run", device="cpu", callbacks=[recorder, ConsoleCallback(Console(file=out))]
    )
    assert [epoch.peak_memory_bytes for epoch in recorder.epochs] == [None, None]
    assert all("peak_memory_bytes" not in epoch for epoch in result.history["teacher"])
    assert "peak_memory_bytes" not in summary_of(tmp_path / "run")
    assert "peak memory" not in out.getvalue()


def test_the_peak_memory_of_a_stage_is_in_its_summary_and_on_the_console(tmp_path, monkeypatch):
    measured = iter([9 * MEBIBYTE, 3 * MEBIBYTE, 5 * MEBIBYTE])  # of the check, and of two epochs
    monkeypatch.setattr(memory, "peak", lambda device: next(measured))  # as a CUDA device measures it
    recorder, out = Recorder(), io.StringIO()
    kdkit.run(one_net, out=tmp_path / "run", device="cpu", callbacks=[recorder, ConsoleCallback(Console(file=out))])
    assert [epoch.peak_memory_bytes for epoch in recorder.epochs] == [3 * MEBIBYTE, 5 * MEBIBYTE]
    assert summary_of(tmp_path / "run")["peak_memory_bytes"] == 5 * MEBIBYTE
    assert out.getvalue().count("peak memory") == out.getvalue().count("peak memory 5 MB") == 1


def test_the_peak_memory_of_a_resumed_stage_includes_the_epochs_before(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "peak", lambda device: 7 * MEBIBYTE)
    kill_run(one_net, tmp_path / "run", KillAtStep(1), device="cpu")
    monkeypatch.setattr(memory, "peak", lambda device: 2 * MEBIBYTE)
    kdkit.run(one_net, out=tmp_path / "run", device="cpu", resume=True)
    assert summary_of(tmp_path / "run")["peak_memory_bytes"] == 7 * MEBIBYTE


def test_a_check_shows_the_peak_memory_of_each_dry_run(monkeypatch):
    def shown():
        out = io.StringIO()
        show_plan(kdkit.check(three()), Console(file=out, width=200))
        return [line for line in out.getvalue().splitlines() if "peak memory" in line]

    assert shown() == []
    monkeypatch.setattr(memory, "peak", lambda device: 3 * MEBIBYTE)  # as a CUDA device measures it
    assert len(shown()) == 3
    assert "peak memory of the dry run, with a few samples and no optimizer: 3 MB; a training step" in shown()[0]


def test_a_run_that_recomputes_activations_has_the_same_bits_also_when_it_is_resumed(tmp_path):
    kill = KillAtStep(1, stage="student")
    resumed = killed_and_resumed(lambda: recomputed(["0"]), tmp_path / "run", kill, device="cpu")
    assert_same_results(resumed, kdkit.run(lambda: recomputed([]), device="cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_larger_batch_has_a_larger_peak_on_a_gpu(tmp_path):
    peaks = []
    for batch_size in (4, 32):
        folder = tmp_path / str(batch_size)
        kdkit.run(lambda size=batch_size: three(training=training(batch_size=size)), out=folder, device="cuda")
        peaks.append(summary_of(folder)["peak_memory_bytes"])
    assert 0 < peaks[0] < peaks[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_recomputing_activations_takes_less_memory_on_a_gpu():
    def recipe(names):
        layers = [nn.Sequential(nn.Linear(512, 512), nn.Dropout(0.1), nn.GELU(), nn.LayerNorm(512)) for _ in range(8)]
        student = Net("student", nn.Sequential(nn.Linear(6, 512), *layers, nn.Linear(512, 3)), recompute=names)
        return Recipe(data=data(8192), schedule=[Stage({student: truth()}, training(batch_size=8192, epochs=1))])

    plain, less = (
        kdkit.run(lambda names=names: recipe(names), device="cuda").history["student"][0]
        for names in ([], [str(index) for index in range(1, 9)])
    )
    assert less["terms"]["truth"] == pytest.approx(plain["terms"]["truth"], rel=1e-5)
    assert less["peak_memory_bytes"] < 0.8 * plain["peak_memory_bytes"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_check_on_a_gpu_measures_the_dry_run_of_each_stage():
    plan = kdkit.check(three(), "cuda")
    assert all(stage.peak_memory_bytes > 0 for stage in plan.stage_plans)
