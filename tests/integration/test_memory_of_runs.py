"""The memory of a run: its peak on a GPU is recorded."""

import io
import json

import pytest
import torch
from rich.console import Console

import kdkit
from kdkit.cli.console import ConsoleCallback
from kdkit.utils import memory
from tests.helpers.stages import three, training

MEBIBYTE = 2**20


class Peaks:
    """Records the peak memory at the end of each epoch."""

    def __init__(self):
        self.peaks = []

    @kdkit.hookimpl
    def epoch_ended(self, event):
        self.peaks.append(event.peak_memory_bytes)


class Interrupt:
    """Interrupts the run in its second epoch, as Ctrl-C does."""

    @kdkit.hookimpl
    def step_ended(self, event):
        if event.epoch == 1:
            raise KeyboardInterrupt


def one_net():
    return kdkit.Recipe(data=three().data, schedule=[three().stages[0]])


def summary_of(folder):
    return json.loads((folder / "1-teacher" / "stage.json").read_text())


def test_a_run_on_the_cpu_records_no_peak_memory(tmp_path):
    peaks, out = Peaks(), io.StringIO()
    result = kdkit.run(
        one_net, out=tmp_path / "run", device="cpu", callbacks=[peaks, ConsoleCallback(Console(file=out))]
    )
    assert peaks.peaks == [None, None]
    assert all("peak_memory_bytes" not in epoch for epoch in result.history["teacher"])
    assert "peak_memory_bytes" not in summary_of(tmp_path / "run")
    assert "peak memory" not in out.getvalue()


def test_the_peak_memory_of_a_stage_is_in_its_summary_and_on_the_console(tmp_path, monkeypatch):
    measured = iter([3 * MEBIBYTE, 5 * MEBIBYTE])
    monkeypatch.setattr(memory, "peak", lambda device: next(measured))  # as a CUDA device measures it
    peaks, out = Peaks(), io.StringIO()
    kdkit.run(one_net, out=tmp_path / "run", device="cpu", callbacks=[peaks, ConsoleCallback(Console(file=out))])
    assert peaks.peaks == [3 * MEBIBYTE, 5 * MEBIBYTE]
    assert summary_of(tmp_path / "run")["peak_memory_bytes"] == 5 * MEBIBYTE
    assert out.getvalue().count("peak memory") == out.getvalue().count("peak memory 5 MB") == 1


def test_the_peak_memory_of_a_resumed_stage_includes_the_epochs_before(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "peak", lambda device: 7 * MEBIBYTE)
    with pytest.raises(KeyboardInterrupt):
        kdkit.run(one_net, out=tmp_path / "run", device="cpu", callbacks=[Interrupt()])
    monkeypatch.setattr(memory, "peak", lambda device: 2 * MEBIBYTE)
    kdkit.run(one_net, out=tmp_path / "run", device="cpu", resume=True)
    assert summary_of(tmp_path / "run")["peak_memory_bytes"] == 7 * MEBIBYTE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_larger_batch_has_a_larger_peak_on_a_gpu(tmp_path):
    peaks = []
    for batch_size in (4, 32):
        folder = tmp_path / str(batch_size)
        kdkit.run(lambda size=batch_size: three(training=training(batch_size=size)), out=folder, device="cuda")
        peaks.append(summary_of(folder)["peak_memory_bytes"])
    assert 0 < peaks[0] < peaks[1]
