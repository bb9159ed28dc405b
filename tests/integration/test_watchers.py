"""Watchers are told plain values and change nothing, not even by drawing random numbers or by failing."""

import pytest
import torch

import kdkit

from .tiny import three


def losses(watchers=()):
    history = kdkit.run(three, watchers=watchers).history
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
