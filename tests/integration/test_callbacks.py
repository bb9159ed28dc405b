"""Tests of callbacks: they receive plain values and cannot change a run, even if they fail or draw random numbers."""

import io

import pytest
import torch
from rich.console import Console

import kdkit
from kdkit.engine.console import ConsoleCallback
from tests.helpers.stages import Small, data, three, training, truth


def run_losses(callbacks=()):
    """Run the recipe of three nets and return the terms of each epoch."""
    history = kdkit.run(three, callbacks=callbacks).history
    return [epoch["terms"] for stage in history.values() for epoch in stage]


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


class EndRecorder:
    """Records the error that ended the run."""

    error = None

    @kdkit.hookimpl
    def run_ended(self, event):
        self.error = event.error


class Interrupt:
    """Interrupts the run, as Ctrl-C does."""

    @kdkit.hookimpl
    def epoch_ended(self, event):
        raise KeyboardInterrupt


def test_a_callback_that_draws_random_numbers_changes_no_loss():
    assert run_losses([RandomDraws()]) == run_losses()


def test_a_callback_that_fails_is_dropped_with_one_warning_and_the_run_continues():
    failing = Failing()
    with pytest.warns(RuntimeWarning, match=r"is dropped, because its step_ended raised ValueError: no disk") as caught:
        terms = run_losses([failing])
    assert failing.calls == len(caught) == 1
    assert terms == run_losses()


def test_callbacks_are_called_when_a_run_is_interrupted():
    recorder = EndRecorder()
    with pytest.raises(KeyboardInterrupt):
        run_losses([recorder, Interrupt()])
    assert isinstance(recorder.error, KeyboardInterrupt)


def test_the_progress_bar_shows_every_step_at_the_end_of_an_epoch(monkeypatch):
    completed = []
    callback = ConsoleCallback(Console(file=io.StringIO(), force_terminal=True))
    # So long that no step updates the bar, and only the end of an epoch does.
    monkeypatch.setattr("kdkit.engine.console._BAR_INTERVAL", 3600.0)

    class BarReader:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            completed.append(callback._progress.tasks[0].completed)

    kdkit.run(three(training=training(epochs=2)), device="cpu", callbacks=[BarReader(), callback])
    assert completed == [4, 8] * 3


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
