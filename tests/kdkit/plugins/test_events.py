"""Tests of the events that callbacks receive."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from kdkit.plugins import events
from kdkit.plugins.events import Figures, StepEnded
from tests.helpers.command_line import environment


class CountingTensor(torch.Tensor):
    """A tensor that counts how often it is converted to a number, which on a GPU waits for the device."""

    reads = 0

    def __float__(self):
        CountingTensor.reads += 1
        return super().__float__()


def test_figures_are_read_only_when_they_are_accessed():
    figures = Figures({"truth": torch.tensor(1.5).as_subclass(CountingTensor)})
    CountingTensor.reads = 0
    assert len(figures) == 1
    assert list(figures) == ["truth"]
    assert CountingTensor.reads == 0
    assert figures["truth"] == 1.5
    assert CountingTensor.reads == 1


def test_figures_are_python_floats_by_name():
    figures = Figures({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    assert dict(figures) == {"a": 1.0, "b": 2.0}
    assert all(type(value) is float for value in figures.values())
    assert repr(figures) == "{'a': 1.0, 'b': 2.0}"
    with pytest.raises(KeyError):
        _ = figures["c"]


def test_a_callback_cannot_change_an_event():
    event = StepEnded(stage="student", epoch=0, batch=1, terms={})
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.epoch = 3


def test_every_event_has_a_docstring():
    classes = [
        value
        for value in vars(events).values()
        if dataclasses.is_dataclass(value) and value.__module__ == events.__name__
    ]
    fields = {"BaselineDifference"}  # of an event
    names = {"RunStarted", "StageStarted", "StepEnded", "EpochEnded", "RunEnded"}
    assert {cls.__name__ for cls in classes} == names | fields
    # A dataclass without a docstring gets its signature as one.
    assert all(cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(") for cls in classes)


def test_hooks_and_events_are_imported_without_torch():
    code = "import sys, kdkit.plugins.hooks; print('kdkit.plugins.events' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(), timeout=60
    )
    assert done.stdout == "True False\n"
