"""Watchers are told plain values and change nothing, not even by drawing random numbers or by failing."""

import io

import pytest
import torch
from rich.console import Console

import kdkit
from kdkit.cli.console import ConsoleCallback
from tests.helpers.stages import Small, data, three, training, truth


def losses(callbacks=()):
    history = kdkit.run(three, callbacks=callbacks).history
    return [epoch["terms"] for stage in history.values() for epoch in stage]


class Gambler:
    """Draws random numbers at every step."""

    @kdkit.hookimpl
    def step_ended(self, event):
        torch.rand(3)


class Clumsy:
    """Fails at the first step."""

    def __init__(self):
        self.told = 0

    @kdkit.hookimpl
    def step_ended(self, event):
        self.told += 1
        raise ValueError("no disk")


class Witness:
    """Is told of the end."""

    error = None

    @kdkit.hookimpl
    def run_ended(self, event):
        self.error = event.error


class Interrupting:
    """Stops the run as a person would."""

    @kdkit.hookimpl
    def epoch_ended(self, event):
        raise KeyboardInterrupt


def test_a_watcher_that_draws_random_numbers_changes_no_loss():
    assert losses([Gambler()]) == losses()


def test_a_watcher_that_fails_is_dropped_with_one_warning_and_the_run_goes_on():
    clumsy = Clumsy()
    with pytest.warns(RuntimeWarning, match=r"dropped, since its step_ended raised ValueError: no disk") as caught:
        terms = losses([clumsy])
    assert clumsy.told == len(caught) == 1
    assert terms == losses()


def test_watchers_are_told_of_an_end_by_the_keyboard():
    witness = Witness()
    with pytest.raises(KeyboardInterrupt):
        losses([witness, Interrupting()])
    assert isinstance(witness.error, KeyboardInterrupt)


def test_the_bar_shows_every_step_at_the_end_of_an_epoch(monkeypatch):
    shown = []
    callback = ConsoleCallback(Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setattr("kdkit.cli.console._PAUSE", 3600.0)  # so that steps wait for the epoch's end

    class Looking:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            shown.append(callback._progress.tasks[0].completed)

    kdkit.run(three(training=training(epochs=2)), device="cpu", callbacks=[Looking(), callback])
    assert shown == [4, 8] * 3


def test_a_source_may_keep_what_it_is_told_of_each_batch():
    kept = []

    class Keeping(kdkit.TeacherSession):
        def __call__(self, batch):
            return kdkit.TeacherOutput(torch.zeros(len(batch), 3))

        def observe(self, batch, outputs):
            kept.append(outputs)

    class Teacher:
        name = "keeper"

        def open(self, taps, facts):
            return Keeping()

    net = kdkit.Net("student", Small(4))
    objective = truth() + kdkit.Match(Teacher(), kdkit.losses.SoftTargets())
    kdkit.run(kdkit.Recipe(data=data(), schedule=[kdkit.Stage({net: objective}, training())]), device="cpu")
    first, second = kept[:2]
    assert not torch.equal(first["student"], second["student"])
    assert not first["student"].requires_grad
