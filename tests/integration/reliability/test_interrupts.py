"""Tests of runs that Ctrl-C or an exception of user code ends: what was computed is kept, and they can be resumed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import kdkit
from kdkit import Sequential, Truth
from kdkit.engine.interrupts import Interrupts
from kdkit.errors import Terminated
from tests.helpers.callbacks import Recorder
from tests.helpers.command_line import environment
from tests.helpers.processes import ForkedPython, run_python, wait_until
from tests.helpers.stages import copied, same, three, training

# The second stage waits in its third epoch, in a step, which a signal does not end. Python ignores SIGINT in a process
# that was started in the background.
RECIPE = """
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

import kdkit
from tests.helpers.stages import three, training

signal.signal(signal.SIGINT, signal.default_int_handler)
fsync = os.fsync


def slow_fsync(handle):
    if Path("slow").exists():
        Path("writing").touch()
        time.sleep(60)
    fsync(handle)


os.fsync = slow_fsync


@kdkit.hookimpl
def step_ended(event):
    if Path("wait").exists() and (event.stage, event.epoch, event.batch) == ("assistant", 2, 1):
        Path("waiting").touch()
        while Path("wait").exists():
            time.sleep(0.02)


def recipe(workers: int = 0, loader: bool = False):
    made = three(kdkit.Sequential, training=training(epochs=4, workers=workers))
    if loader:
        loaded = torch.utils.data.DataLoader(made.data.train.dataset, batch_size=8, num_workers=1)
        data = kdkit.TorchData(loaded, made.data.validation.dataset, classes=("a", "b", "c"))
        made = kdkit.Recipe(data=data, schedule=made.schedule)
    return made
"""
CATCHING = """
from recipe_file import *

out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
try:
    kdkit.run(recipe, device="cpu", out=out, callbacks=[sys.modules["recipe_file"]])
except KeyboardInterrupt as interrupt:
    result = interrupt.result
    torch.save({name: net.network.state_dict() for name, net in result.nets.items()}, "weights.pt")
    Path("history.json").write_text(json.dumps(result.history))
    assert result.metrics == {}
    assert result.folder == out
else:
    sys.exit("was not interrupted")
"""
NOT_CATCHING = """
from recipe_file import *

kdkit.run(recipe, device="cpu", callbacks=[sys.modules["recipe_file"]])
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    (tmp_path / "catching.py").write_text(CATCHING)
    (tmp_path / "not_catching.py").write_text(NOT_CATCHING)
    return tmp_path


def interrupt(folder, *arguments, start=ForkedPython, numbers=(signal.SIGINT,), continues=True):
    """Start a program, send signals while it waits in a step, let it continue, and return its exit code and stderr."""
    (folder / "wait").touch()
    process = start(arguments, folder)
    wait_until((folder / "waiting").exists, process)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)
    if continues:
        (folder / "wait").unlink()
    _, err = process.communicate(timeout=30)
    (folder / "wait").unlink(missing_ok=True)
    return process.returncode, err


@pytest.mark.parametrize(
    "arguments", [pytest.param([], marks=pytest.mark.slow), ["run"]], ids=["without a folder", "with a folder"]
)
def test_an_interrupted_run_in_python_gives_its_history_and_best_weights(arguments, folder):
    code, err = interrupt(folder, "catching.py", *arguments)
    assert code == 0, err
    history = json.loads((folder / "history.json").read_text())
    assert [(stage, len(epochs)) for stage, epochs in history.items()] == [("teacher", 4), ("assistant", 2)]

    # A run of the same seed whose second stage ends after these two epochs.
    class Stop:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            if (event.stage, event.epoch) == ("assistant", 1):
                raise kdkit.StopTraining

    expected = kdkit.run(lambda: three(Sequential, training=training(epochs=4)), device="cpu", callbacks=[Stop()])
    weights = torch.load(folder / "weights.pt")
    for name in ("teacher", "assistant"):
        assert same(weights[name], copied(expected.nets[name].module)), name
        terms = [[epoch["terms"] for epoch in epochs[name]] for epochs in (history, expected.history)]
        assert terms[0][: len(terms[1])] == terms[1]
    if arguments:
        resumed = kdkit.run(
            lambda: three(Sequential, training=training(epochs=4)), device="cpu", out=folder / "run", resume=True
        )
        assert [len(epochs) for epochs in resumed.history.values()] == [4, 4, 4]


def fresh_python(arguments, folder):
    """Start a new interpreter, whose end is its own."""
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    )


def test_an_interrupt_that_is_not_caught_ends_python_by_the_signal_and_names_the_result(folder):
    # torch imports it when Python ends, if it is installed.
    (folder / "tabulate.py").write_text("exec('1')\n\n\ndef tabulate(*_args, **_options):\n    return ''\n")
    code, err = interrupt(folder, "not_catching.py", start=fresh_python)
    assert code == -signal.SIGINT, err  # so that a loop in a shell ends too
    assert "KeyboardInterrupt\nkdkit: the attribute `result` of this exception has the history" in err


def test_an_interrupted_command_exits_with_130_and_can_be_resumed(folder):
    command = ["-m", "kdkit", "run", "recipe_file.py", "--device", "cpu"]
    code, err = interrupt(folder, *command)
    assert code == 130
    assert "Traceback" not in err
    (run,) = (folder / "runs").glob("recipe_file-*")
    assert f"to resume from the last checkpoint: kdkit run --resume runs/{run.name}" in err
    done = run_python([*command, "--out", str(run), "--resume"], folder)
    assert done.returncode == 0, done.stderr
    assert "resumed in epoch 3 after 2 of 4 batches" in done.stdout


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGINT, signal.SIGINT), 130),
        pytest.param((signal.SIGTERM, signal.SIGTERM), 143, marks=pytest.mark.slow),
        ((signal.SIGTERM,), 143),
    ],
)
def test_a_second_signal_ends_a_command_in_its_step_and_loses_nothing_older(folder, numbers, code):
    command = ["-m", "kdkit", "run", "recipe_file.py", "--device", "cpu", "--out", "run"]
    continues = len(numbers) == 1
    actual, err = interrupt(folder, *command, numbers=numbers, continues=continues)
    assert actual == code, err
    assert "Traceback" not in err
    assert "stopping after this batch" in err
    assert "to resume from the last checkpoint: kdkit run --resume run" in err
    done = run_python([*command, "--resume"], folder)
    assert done.returncode == 0, done.stderr
    assert ("resumed in epoch 3 after 2 of 4 batches" if continues else "resumed after epoch 2") in done.stdout


@pytest.mark.parametrize("start", [ForkedPython, pytest.param(fresh_python, marks=pytest.mark.slow)])
def test_a_second_interrupt_does_not_wait_for_the_checkpoint_of_the_first(folder, start):
    command = ["-m", "kdkit", "run", "recipe_file.py", "--device", "cpu", "--out", "run"]
    (folder / "wait").touch()
    process = start(command, folder)
    wait_until((folder / "waiting").exists, process)
    wait_until((folder / "run" / "2-assistant" / "checkpoint-8.safetensors").exists, process)  # of the second epoch
    time.sleep(0.2)
    (folder / "slow").touch()
    process.send_signal(signal.SIGINT)
    (folder / "wait").unlink()
    wait_until((folder / "writing").exists, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert err.count("stopped") == 1
    assert "Traceback" not in err
    (folder / "slow").unlink()
    assert [file.name for file in (folder / "run" / "2-assistant").glob("*.tmp")]  # half-written, under this name only
    done = run_python([*command, "--resume"], folder)
    assert done.returncode == 0, done.stderr
    assert "resumed after epoch 2" in done.stdout
    assert not [*(folder / "run").rglob("*.tmp")]


@pytest.mark.parametrize("option", [pytest.param(("--workers", "1"), marks=pytest.mark.slow), ("--loader",)])
def test_a_sigterm_to_the_process_group_of_a_run_with_worker_processes_ends_it_with_a_checkpoint(folder, option):
    """As torchrun and `timeout` send it."""
    command = ["-m", "kdkit", "run", "recipe_file.py", *option, "--device", "cpu", "--out", "run"]
    (folder / "wait").touch()
    process = ForkedPython(command, folder)
    wait_until((folder / "waiting").exists, process)
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.2)
    (folder / "wait").unlink()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert "error" not in err
    assert (folder / "run" / "2-assistant" / "checkpoint-10.safetensors").exists()  # of the batch at which it waited


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_whose_exception_python_ignores_ends_the_run_after_the_next_batch(number, error, monkeypatch):
    class Batch:
        def __del__(self):
            signal.raise_signal(number)

    ignored = []
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: ignored.append(unraisable.exc_type))
    with Interrupts() as interrupts:
        batch = Batch()
        del batch
        assert ignored == [error]
        assert interrupts.agree_after_update()
        with pytest.raises(error):
            interrupts.end_run()


def test_an_interrupt_in_the_first_epoch_leaves_an_empty_history_and_the_way_to_resume(tmp_path):
    folder = tmp_path / "run"

    class Interrupt:
        @kdkit.hookimpl
        def step_ended(self, event):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        kdkit.run(lambda: three(Sequential, training=training()), device="cpu", callbacks=[Interrupt()], out=folder)
    assert caught.value.__notes__[-1].endswith(f"kdkit.run(..., out={str(folder)!r}, resume=True) in Python")
    result = caught.value.result
    assert result.history == {"teacher": []}
    assert not result.nets["teacher"].trained
    assert not result.nets["teacher"].network.training


class FailsOnce(nn.Module):
    """A loss that raises in the third epoch, unless it is repaired."""

    repaired = False

    def forward(self, student, labels, *, progress):
        if progress >= 0.5 and not self.repaired:
            raise ZeroDivisionError("of the user")
        return nn.functional.cross_entropy(student, labels)


def failing_recipe():
    return three(Sequential, truth=Truth(FailsOnce(), label="truth"), training=training(epochs=4))


def test_an_exception_of_user_code_passes_unchanged_and_the_run_can_be_resumed(tmp_path, monkeypatch):
    recorder = Recorder()
    options = {"device": "cpu", "out": tmp_path / "run"}
    with pytest.raises(ZeroDivisionError, match="of the user") as caught:
        kdkit.run(failing_recipe, callbacks=[recorder], **options)
    assert recorder.ends[0].error is caught.value
    assert not [path for path in (tmp_path / "run").rglob(".*.tmp")]  # nothing half-written
    lines = (tmp_path / "run" / "1-teacher" / "history.jsonl").read_text().splitlines()
    assert len(lines) == 2
    monkeypatch.setattr(FailsOnce, "repaired", True)
    resumed = kdkit.run(failing_recipe, resume=True, **options)
    whole = kdkit.run(failing_recipe, device="cpu")
    for name, net in whole.nets.items():
        assert same(copied(net.module), copied(resumed.nets[name].module)), name
