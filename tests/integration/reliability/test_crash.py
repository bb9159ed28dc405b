"""Runs that are killed at random moments end in the bits of an undisturbed run: see `tests.helpers.crash`."""

import csv
import errno
import json
import random
import signal
import threading
import time
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import kdkit
from kdkit import Net, Recipe, Stage, TorchData
from kdkit.engine.storage import run_files
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.errors import KdkitError
from tests.helpers.callbacks import PressCtrlC
from tests.helpers.crash import CrashTest, require_same_results, results
from tests.helpers.stages import Small, samples, training, truth

KILLS = 6  # `python benchmarks/crash.py --kills 100` is the long one


@pytest.fixture(scope="module")
def crash(tmp_path_factory):
    """A folder of runs, of which the one in "whole" is undisturbed."""
    test = CrashTest(tmp_path_factory.mktemp("crash"), options=("--log", "csv", "--log", "jsonl"))
    test.finish("whole")
    assert len(results(test.folder / "whole" / "run")) > 15
    return test


@pytest.fixture(scope="module")
def kills(crash):
    """The kills of the run in "killed", which was resumed after each."""
    kills = crash.disturb("killed", random.Random(0), [signal.SIGKILL] * KILLS)
    assert len(kills) >= KILLS // 2  # the last ones may be too late
    return kills


def test_a_run_that_is_killed_at_random_moments_ends_in_the_same_bits(crash, kills):
    crash.require_same("killed", "whole")
    assert any(kill.lost for kill in kills)


@pytest.mark.usefixtures("kills")
def test_a_run_that_is_killed_at_random_moments_logs_every_epoch_once(crash):
    tables, lines = [], []
    for name in ("whole", "killed"):
        with (crash.folder / name / "run" / "log.csv").open(newline="") as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
        text = (crash.folder / name / "run" / "log.jsonl").read_text()
        lines.append([{**json.loads(line), "seconds": None} for line in text.splitlines()])
    assert tables[0] == tables[1]
    assert lines[0] == lines[1]
    assert [row["step"] for row in tables[0]] == [*map(str, range(1, 10)), "9"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_ended_by_signals_at_random_moments_repeats_no_step_and_ends_in_the_same_bits(crash, number):
    kills = crash.disturb(number.name, random.Random(1), [number] * 4)
    crash.require_same(number.name, "whole")
    assert [kill.lost for kill in kills] == [0] * len(kills)


class Augmented(Dataset):
    """Samples with noise from the global random numbers of three libraries. signals: sent at the read of a sample."""

    def __init__(self, count, first=0, signals=()):
        self.samples, self.signals, self.reads = samples(count, first), dict(signals), 0

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.reads += 1
        if self.reads in self.signals:
            signal.raise_signal(self.signals[self.reads])
        inputs, label = self.samples[index]
        return inputs + 0.1 * torch.randn(6) + np.float32(np.random.normal()) + random.random(), label


def one(make_train, signals=()):
    """Return a recipe with one net, and the training data that a function makes."""
    data = TorchData(make_train(), Augmented(24, 1, signals), Augmented(24, 2), classes=("a", "b", "c"))
    return Recipe(data=data, schedule=[Stage({Net("net", Small(4)): truth()}, training(epochs=3))])


def require_same_bits(folder, make, interrupted=None, callbacks=()):
    """Interrupt a run, resume it, and require the bits of an undisturbed one. Return the history of the first."""
    kdkit.run(make, device="cpu", out=folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        kdkit.run(interrupted or make, device="cpu", out=folder / "cut", callbacks=callbacks)
    lines = (folder / "cut" / "1-net").glob("history.jsonl")
    before = [json.loads(line) for file in lines for line in file.read_text().splitlines()]
    kdkit.run(make, device="cpu", out=folder / "cut", resume=True)
    require_same_results(results(folder / "cut"), results(folder / "whole"))
    return before


# The suite has time for each number of workers and each order once.
@pytest.mark.parametrize(
    ("shuffle", "workers"),
    [
        (False, 0),
        (True, 2),
        pytest.param(True, 0, marks=pytest.mark.slow),
        pytest.param(False, 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("workers_end_quickly")
def test_a_loader_of_the_user_that_draws_random_numbers_resumes_within_an_epoch(workers, shuffle, tmp_path):
    def loader():
        return DataLoader(Augmented(40), batch_size=8, shuffle=shuffle, num_workers=workers)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python, about forks in a process with threads
        before = require_same_bits(tmp_path, partial(one, loader), callbacks=[PressCtrlC(1, batch=2)])
    assert len(before) == 1


def test_rows_that_draw_random_numbers_resume_within_an_epoch(tmp_path):
    require_same_bits(tmp_path, partial(one, lambda: Augmented(40)), callbacks=[PressCtrlC(1, batch=2)])


@pytest.mark.parametrize("read", [24 + 10, 2 * 24 + 10])
def test_an_interrupt_in_the_validation_repeats_the_validation_only(read, tmp_path):
    """A run that is stopped when the batches of an epoch are done trains none of them again, and skips no epoch."""
    make = partial(one, lambda: Augmented(40))
    reads = 0  # of validation samples before the first epoch ends, such as by the checks

    class Counter:
        @kdkit.hookimpl
        def step_ended(self, event):
            nonlocal reads
            reads = recipe.data.validation.dataset.reads if reads == 0 else reads

    recipe = make()
    kdkit.run(recipe, device="cpu", callbacks=[Counter()])
    before = require_same_bits(tmp_path, make, partial(make, signals=((reads + read, signal.SIGINT),)))
    assert len(before) == read // 24


def test_a_run_that_a_signal_ends_warns_if_its_checkpoint_cannot_be_written(tmp_path, monkeypatch):
    make = partial(one, lambda: Augmented(40))
    original = run_files.write

    def write(path, *content):
        if path.name == f"checkpoint-{5 + 3}.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, *content)

    with monkeypatch.context() as patch:
        patch.setattr(run_files, "write", write)
        with pytest.warns(UserWarning, match="the last checkpoint was not written: the run folder .* cannot be"):
            require_same_bits(tmp_path, make, callbacks=[PressCtrlC(1, batch=2)])


def test_a_run_that_fails_also_warns_if_its_checkpoint_cannot_be_written(tmp_path, monkeypatch):
    original = run_files.write

    def write(path, *content):
        if path.name == "checkpoint-5.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, *content)

    class EndRun:
        @kdkit.hookimpl
        def step_ended(self, event):
            if event.epoch == 1:
                raise KdkitError("the loss is too high")

    monkeypatch.setattr(run_files, "write", write)
    with (
        pytest.warns(UserWarning, match="the last checkpoint was not written: the run folder .* cannot be"),
        pytest.raises(KdkitError, match="the loss is too high"),
    ):
        kdkit.run(one(lambda: Augmented(40)), device="cpu", out=tmp_path / "run", callbacks=[EndRun()])


def test_an_interrupt_at_the_end_of_a_stage_waits_for_its_last_checkpoint(tmp_path, monkeypatch):
    make = partial(one, lambda: Augmented(40))
    original = run_files.write

    def write(path, *content):
        if path.name == "checkpoint-15.safetensors":  # in a thread, while the main thread has nothing left to train
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.2)
        original(path, *content)

    with monkeypatch.context() as patch:
        patch.setattr(run_files, "write", write)
        with pytest.raises(KeyboardInterrupt):
            kdkit.run(make, device="cpu", out=tmp_path / "run")
    assert (tmp_path / "run" / "1-net" / "checkpoint-15.safetensors").exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_checkpoints_that_a_killed_run_left_in_a_finished_stage_are_deleted(tmp_path, monkeypatch):
    make = partial(one, lambda: Augmented(40))
    with monkeypatch.context() as patch:

        def kill(self, *, kept=0, last=None):
            if kept == 0:
                raise KeyboardInterrupt

        patch.setattr(StageFolder, "_delete_checkpoints", kill)
        with pytest.raises(KeyboardInterrupt):
            kdkit.run(make, device="cpu", out=tmp_path / "run")
    assert list((tmp_path / "run" / "1-net").glob("checkpoint-*"))
    kdkit.run(make, device="cpu", out=tmp_path / "run", resume=True)
    assert not list((tmp_path / "run" / "1-net").glob("checkpoint-*"))
