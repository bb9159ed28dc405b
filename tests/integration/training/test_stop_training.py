"""Tests of callbacks that end a stage: the best epoch is kept, later stages run, and a resumed run ends there too."""

import json
from functools import partial

import pytest
import torch

import kdkit
from kdkit import Sequential
from kdkit.engine.storage.stage_folder import StageFolder
from tests.helpers.callbacks import PressCtrlC, Recorder
from tests.helpers.ranks import run_two_ranks
from tests.helpers.stages import copied, last_checkpoint, same, three, training
from tests.integration.distributed.test_torchrun import RECIPE


class StopAfter:
    """Ends a stage after an epoch."""

    def __init__(self, epoch, stage="teacher"):
        self.epoch, self.stage = epoch, stage

    @kdkit.hookimpl
    def epoch_ended(self, event):
        if (event.stage, event.epoch) == (self.stage, self.epoch):
            raise kdkit.StopTraining(f"{event.monitor} is good enough")


class StopInStep:
    """Ends each stage in the steps of its second epoch, or in one step of another epoch, without a reason."""

    def __init__(self, epoch=1, batch=None):
        self.epoch, self.batch = epoch, batch

    @kdkit.hookimpl
    def step_ended(self, event):
        if event.epoch == self.epoch and self.batch in (None, event.batch):
            raise kdkit.StopTraining


def recipe(epochs=4):
    return three(Sequential, training=training(epochs=epochs))


def summary(folder, stage):
    return json.loads((folder / stage / "stage.json").read_text())


def test_a_callback_ends_a_stage_and_later_stages_run(tmp_path):
    result = kdkit.run(recipe, out=tmp_path / "run", device="cpu", callbacks=[StopAfter(1)])
    assert [len(history) for history in result.history.values()] == [2, 4, 4]
    reason = "StopAfter: accuracy is good enough"
    assert [epoch.get("stopped_by") for epoch in result.history["teacher"]] == [None, reason]
    assert summary(tmp_path / "run", "1-teacher")["stopped_by"] == reason
    assert "stopped_by" not in summary(tmp_path / "run", "2-assistant")
    assert result.metrics.keys() == {"teacher", "assistant", "student"}
    # The learning of the first two epochs does not depend on the number of epochs here.
    shorter = kdkit.run(lambda: recipe(epochs=2), device="cpu")
    assert same(copied(result.nets["teacher"].module), copied(shorter.nets["teacher"].module))


def test_the_console_shows_that_a_stage_ended_early(capsys):
    kdkit.run(recipe, device="cpu", callbacks=[StopAfter(1), StopAfter(0, "student")], progress=True)
    lines = capsys.readouterr().out.splitlines()
    ends = [line for line in lines if "ended after" in line]
    assert ends == ["   ended after epoch 2 of 4", "   ended after epoch 1 of 4"]
    assert lines[lines.index(ends[0]) + 2].startswith("2. assistant")


def test_a_stop_in_a_step_ends_the_stage_after_the_epoch():
    recorder = Recorder()
    result = kdkit.run(recipe, device="cpu", callbacks=[StopInStep(), recorder])
    assert [len(history) for history in result.history.values()] == [2, 2, 2]
    assert result.history["student"][-1]["stopped_by"] == "StopInStep"
    assert len(recorder.steps) == 3 * 2 * 4  # every batch of these epochs


def test_a_stop_in_a_step_ends_the_stage_even_if_the_run_is_interrupted_later_in_the_epoch(tmp_path):
    two_epochs, callbacks = partial(recipe, epochs=2), [StopInStep(epoch=0, batch=0), PressCtrlC(epoch=0, batch=2)]
    with pytest.raises(KeyboardInterrupt):
        kdkit.run(two_epochs, out=tmp_path, device="cpu", callbacks=callbacks)
    resumed = kdkit.run(two_epochs, out=tmp_path, device="cpu", resume=True)  # the other steps do not stop it again
    assert [len(history) for history in resumed.history.values()] == [1, 2, 2]
    assert resumed.history["teacher"][0]["stopped_by"] == "StopInStep"


def test_a_stop_after_the_last_epoch_changes_nothing():
    result = kdkit.run(lambda: recipe(epochs=2), device="cpu", callbacks=[StopAfter(1)])
    assert [len(history) for history in result.history.values()] == [2, 2, 2]
    assert "stopped_by" not in result.history["teacher"][-1]


def test_a_stage_that_ran_out_of_patience_is_recorded_as_such(tmp_path):
    options = training(epochs=9, patience=1, optimizer=kdkit.Optimizer(torch.optim.SGD, lr=0.0))
    kdkit.run(lambda: three(Sequential, training=options), out=tmp_path / "run", device="cpu")
    assert summary(tmp_path / "run", "1-teacher")["stopped_by"] == "patience"


def test_a_stop_outside_of_training_drops_the_callback_like_any_error():
    class TooEarly:
        @kdkit.hookimpl
        def run_started(self, event):
            raise kdkit.StopTraining("no data")

    with pytest.warns(RuntimeWarning, match="failed in its run_started: StopTraining: no data"):
        result = kdkit.run(lambda: recipe(epochs=1), device="cpu", callbacks=[TooEarly()])
    assert len(result.history) == 3


def test_a_run_that_is_killed_after_a_stop_does_not_train_on_when_it_resumes(tmp_path, monkeypatch):
    kdkit.run(recipe, out=tmp_path / "whole", device="cpu", callbacks=[StopAfter(1)])

    def kill(self, summary):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(StageFolder, "finish", kill)
        with pytest.raises(SystemExit):
            kdkit.run(recipe, out=tmp_path / "cut", device="cpu", callbacks=[StopAfter(1)])
    assert last_checkpoint(tmp_path / "cut" / "1-teacher")
    assert not (tmp_path / "cut" / "1-teacher" / "stage.json").exists()
    recorder = Recorder()
    kdkit.run(recipe, out=tmp_path / "cut", device="cpu", resume=True, callbacks=[recorder])  # without StopAfter
    assert "teacher" not in {epoch.stage for epoch in recorder.epochs}
    summaries = [summary(tmp_path / run, "1-teacher") for run in ("cut", "whole")]
    for content in summaries:
        assert content.pop("history")["epochs"] == 2
        content.pop("checksum")  # it depends on the digest of the history, in which the seconds of epochs differ
    assert summaries[0] == summaries[1]
    assert (tmp_path / "cut" / "metrics.json").read_bytes() == (tmp_path / "whole" / "metrics.json").read_bytes()


HOOK = """

@kdkit.hookimpl
def epoch_ended(event):
    if event.epoch == 1:
        raise kdkit.StopTraining("enough")
"""


def test_all_processes_of_a_run_end_the_stage_together(tmp_path):
    (tmp_path / "recipe_file.py").write_text(RECIPE + HOOK)
    codes, out, err = run_two_ranks(tmp_path, "-m", "kdkit", "run", "recipe_file.py", "--out", "run")
    assert codes == [0, 0], err
    assert "Metrics on test" in out
    assert summary(tmp_path / "run", "1-student")["epochs"] == 2
    assert summary(tmp_path / "run", "1-student")["stopped_by"] == "recipe_file.py: enough"
