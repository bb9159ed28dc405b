"""Tests of callbacks: they receive plain values and cannot change a run, even if they fail or draw random numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import prune
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit import Optimizer
from kdkit.loggers import CsvLogger
from tests.helpers.callbacks import PressCtrlC, Recorder
from tests.helpers.stages import Small, assert_same_results, data, epoch_terms, one_stage, three, training, truth


def run_losses(callbacks=()):
    """Run the recipe of three nets and return the terms of each epoch."""
    history = kdkit.run(three, callbacks=callbacks).history
    return [epoch["terms"] for stage in history.values() for epoch in stage]


def test_a_callback_that_is_not_in_a_list_is_refused():
    with pytest.raises(kdkit.KdkitError, match=r"callbacks must be a list, .*; got <.*Failing"):
        kdkit.run(three, callbacks=Failing())


class RandomDraws:
    """Draws random numbers at each step."""

    @kdkit.hookimpl
    def step_ended(self, event):
        torch.rand(3)


class Failing:
    """Raises at the first step."""

    def __init__(self):
        self.calls = 0

    @kdkit.hookimpl
    def step_ended(self, event):
        self.calls += 1
        raise ValueError("no disk")


def test_a_callback_that_draws_random_numbers_changes_no_loss():
    assert run_losses([RandomDraws()]) == run_losses()


def test_all_files_of_a_run_are_in_one_folder_if_the_working_directory_changes(tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(tmp_path)

    class Callback:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            monkeypatch.chdir(other)

    def changing() -> kdkit.Recipe:
        monkeypatch.chdir(other)
        return three()

    callbacks = [Callback(), CsvLogger("mine.csv")]
    for recipe, name in ((changing, "changed/inside"), (three, "plain/outside")):
        result = kdkit.run(recipe, out=name, device="cpu", callbacks=callbacks, measure=False)
        (tmp_path / "mine.csv").unlink()
        assert result.folder.resolve() == tmp_path / name
        assert Path.cwd() == tmp_path
    sweep = kdkit.Sweep(changing, {}, folder="sweep", seeds=2)
    assert [trial.error for trial in sweep.run(kdkit.RunOptions(device="cpu", measure=False))] == [None, None]
    assert len(sweep.results().cells[0].repetitions) == 2
    assert not list(other.iterdir())


def test_a_callback_that_fails_is_reported_once_and_counted_and_the_run_continues():
    failing = Failing()
    with pytest.warns(RuntimeWarning) as caught:
        terms = run_losses([failing])
    first, last = (str(warning.message) for warning in caught)
    assert first.startswith("callback 'Failing' failed in its step_ended: ValueError: no disk (")
    assert "test_callbacks.py, line " in first
    assert first.endswith("the run continues, and further errors are counted; to end a stage, raise kdkit.StopTraining")
    assert last == f"callback 'Failing' failed in {failing.calls} calls of its step_ended"
    assert failing.calls == 3 * 2 * 4  # it is called for every batch
    assert terms == run_losses()


def test_two_callbacks_of_a_class_are_reported_each():
    with pytest.warns(RuntimeWarning) as caught:
        run_losses([Failing(), Failing()])
    assert len(caught) == 4


def test_a_callback_that_fails_once_goes_on_afterwards():
    epochs = []

    class FailsOnce:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            epochs.append(event.epoch)
            if len(epochs) == 1:
                raise OSError("the server is busy")

    with pytest.warns(
        RuntimeWarning, match="'FailsOnce' failed in its epoch_ended: OSError: the server is busy"
    ) as caught:
        run_losses([FailsOnce()])
    assert len(caught) == 1
    assert epochs == [0, 1] * 3


@pytest.mark.parametrize("hook", ["run_started", "stage_started", "step_ended", "epoch_ended", "run_ended"])
def test_an_error_of_every_hook_is_reported_and_loses_nothing(hook, tmp_path):
    class FailsEverywhere:
        pass

    def fail(self, event):
        raise ZeroDivisionError("first line\nsecond line")

    fail.__name__ = hook
    setattr(FailsEverywhere, hook, kdkit.hookimpl(fail))
    with pytest.warns(RuntimeWarning) as caught:
        failed = kdkit.run(three, out=tmp_path / "failed", device="cpu", callbacks=[FailsEverywhere()])
    message = f"callback 'FailsEverywhere' failed in its {hook}: ZeroDivisionError: first line ("
    assert str(caught[0].message).startswith(message)
    assert epoch_terms(failed.history) == epoch_terms(kdkit.run(three, device="cpu").history)
    assert (tmp_path / "failed" / "metrics.json").is_file()


def test_the_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("KDKIT_TRACEBACK", "1")
    with pytest.warns(RuntimeWarning) as caught:
        run_losses([Failing()])
    assert "\nTraceback (most recent call last):\n" in str(caught[0].message)


@pytest.mark.parametrize("hook", ["run_started", "stage_started", "step_ended", "epoch_ended"])
def test_an_error_of_kdkit_that_a_callback_raises_ends_the_run(hook, tmp_path):
    class Ends:
        pass

    def end(self, event):
        raise kdkit.DataError("the quota is used up")

    setattr(Ends, hook, kdkit.hookimpl(end))
    with pytest.raises(kdkit.DataError, match="the quota is used up") as raised:
        kdkit.run(three, out=tmp_path / "run", device="cpu", callbacks=[Ends()])
    assert raised.value.__notes__ == [f"callback 'Ends' raised this in its {hook} to end the run"]
    # The epoch that ended is saved before the run ends.
    resumed = kdkit.run(three, out=tmp_path / "run", device="cpu", resume=True, callbacks=[recorder := Recorder()])
    assert recorder.stages[0].epoch == (1 if hook == "epoch_ended" else 0)
    assert epoch_terms(resumed.history) == epoch_terms(kdkit.run(three, device="cpu").history)


def test_a_callback_that_adds_masks_after_the_best_epoch_is_told_to_add_them_in_the_recipe():
    student = kdkit.Net("student", Small(4))

    class Prunes:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            prune.l1_unstructured(student.module.head, "weight", amount=0.5)

    with pytest.raises(kdkit.KdkitError, match=r"no longer fit, .*head\.weight_mask.*; .* add masks in the recipe"):
        kdkit.run(one_stage(student, epochs=1), device="cpu", callbacks=[Prunes()])


def test_an_error_of_kdkit_after_the_run_is_reported_only():
    class Ends:
        @kdkit.hookimpl
        def run_ended(self, event):
            raise kdkit.DataError("no report")

    with pytest.warns(RuntimeWarning, match="'Ends' failed in its run_ended: DataError: no report"):
        run_losses([Ends()])


def test_a_callback_may_exit_the_program():
    class Exits:
        @kdkit.hookimpl
        def step_ended(self, event):
            raise SystemExit(4)

    with pytest.raises(SystemExit):
        run_losses([Exits()])


def test_callbacks_are_called_when_a_run_is_interrupted():
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt) as raised:
        run_losses([recorder, PressCtrlC(1)])
    assert recorder.ends[0].error is raised.value


def test_a_teacher_session_may_keep_the_student_outputs_that_it_observes():
    observed = []

    class Session(kdkit.TeacherSession):
        def __call__(self, batch):
            return kdkit.TeacherOutput(torch.zeros(len(batch), 3))

        def observe(self, batch, outputs):
            observed.append(outputs)

    class Teacher:
        name = "observer"

        def open(self, taps, facts):
            return Session()

    net = kdkit.Net("student", Small(4))
    objective = truth() + kdkit.Match(Teacher(), kdkit.losses.SoftTargets())
    kdkit.run(kdkit.Recipe(data=data(), schedule=[kdkit.Stage({net: objective}, training())]), device="cpu")
    first, second = observed[:2]
    assert not torch.equal(first["student"], second["student"])  # a copy, which the next step does not overwrite
    assert not first["student"].requires_grad


def test_the_start_of_a_run_has_what_a_logger_records():
    recorder = Recorder()
    kdkit.run(three, callbacks=[recorder], seed=3, device="cpu")
    (event,) = recorder.runs
    assert event.settings["seed"] == 3
    assert event.settings["precision"] == "fp32"
    for stage in event.stages:
        assert event.settings[f"{stage}/epochs"] == training().epochs
        assert event.settings[f"{stage}/batch_size"] == training().batch_size
        assert event.settings[f"{stage}/learning_rate"] == training().optimizer.options["lr"]
        assert "lr=" in event.settings[f"{stage}/optimizer"]
    assert all(isinstance(value, str | int | float | bool) for value in event.settings.values())
    assert all(count > 0 for count in event.parameters.values())
    assert set(event.versions) == {"kdkit", "torch", "python"}


def test_a_logger_records_the_batch_size_of_a_loader():
    recorder, rows = Recorder(), TensorDataset(torch.randn(12, 6), torch.arange(12) % 3)
    recipe_data = kdkit.TorchData(DataLoader(rows, 6), rows)
    stage = kdkit.Stage({kdkit.Net("student", torch.nn.Linear(6, 3)): truth()}, kdkit.Training(epochs=1))
    kdkit.run(kdkit.Recipe(data=recipe_data, schedule=[stage]), callbacks=[recorder], device="cpu")
    assert recorder.runs[0].settings["student/batch_size"] == 6


def test_numbers_of_numpy_and_torch_are_numbers_of_python_in_events():
    recorder, number = Recorder(), np.float32(0.5)
    objective, optimizer = number * truth(), Optimizer(SGD, lr=torch.tensor(0.5))
    kdkit.run(one_stage(None, objective, max_grad_norm=number, optimizer=optimizer, epochs=1), callbacks=[recorder])
    settings = recorder.runs[0].settings
    numbers = [settings["student/max_grad_norm"], settings["student/learning_rate"]]
    numbers += [event.weights["truth"] for event in (*recorder.stages, *recorder.epochs)]
    assert [(type(number), number) for number in numbers] == [(float, 0.5)] * 4
    assert repr(objective).startswith("0.5 * Truth")


def test_the_start_of_a_run_of_the_command_line_has_the_options_of_the_recipe(kdkit_here, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import json, pathlib\nimport kdkit\nfrom tests.helpers.stages import three\n\n"
        "@kdkit.hookimpl\ndef run_started(event):\n"
        "    pathlib.Path('event.json').write_text(json.dumps(dict(event.options)))\n\n"
        "def recipe(width: int = 3, name: str = 'a'):\n    return three()\n"
    )
    result = kdkit_here("run", "mine.py", "--width", "5", "--out", "run", "--device", "cpu", "--quiet")
    assert result.code == 0, result.err
    assert (tmp_path / "event.json").read_text() == '{"width": 5, "name": "a"}'


def test_a_callback_that_changes_its_event_does_not_change_the_run():
    class Meddler:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            for mapping in (event.terms, event.weights):
                for key in list(mapping):
                    try:
                        mapping[key] = 0.0
                    except TypeError:  # a read-only mapping
                        return

        @kdkit.hookimpl
        def run_ended(self, event):
            if isinstance(event.metrics, dict):
                event.metrics.clear()

    watched = kdkit.run(three, device="cpu", callbacks=[Meddler()])
    assert_same_results(watched, kdkit.run(three, device="cpu"))


def test_a_misspelt_hook_of_a_callback_is_refused_by_name():
    class Wrong:
        @kdkit.hookimpl
        def epoch_end(self, event): ...

    with pytest.raises(kdkit.errors.PluginError, match=r"'epoch_end'.*did you mean 'epoch_ended'"):
        kdkit.run(three, device="cpu", callbacks=[Wrong()])
