"""What watchers are told."""

import dataclasses

import pytest
import torch

from kdkit.plugins import events
from kdkit.plugins.events import Figures, StepEnded


class Counted(torch.Tensor):
    """A tensor that counts how often it is read off its device."""

    reads = 0

    def __float__(self):
        Counted.reads += 1
        return super().__float__()


def test_figures_are_read_only_when_somebody_looks():
    figures = Figures({"truth": torch.tensor(1.5).as_subclass(Counted)})
    Counted.reads = 0
    assert len(figures) == 1
    assert list(figures) == ["truth"]
    assert Counted.reads == 0
    assert figures["truth"] == 1.5
    assert Counted.reads == 1


def test_figures_are_plain_numbers_by_name():
    figures = Figures({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    assert dict(figures) == {"a": 1.0, "b": 2.0}
    assert all(type(value) is float for value in figures.values())
    assert repr(figures) == "{'a': 1.0, 'b': 2.0}"
    with pytest.raises(KeyError):
        _ = figures["c"]


def test_an_event_cannot_be_changed_by_who_is_told():
    event = StepEnded(stage="student", epoch=0, batch=1, terms={})
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.epoch = 3


def test_every_event_says_what_it_is():
    told = [
        each for each in vars(events).values() if dataclasses.is_dataclass(each) and each.__module__ == events.__name__
    ]
    assert {each.__name__ for each in told} == {"RunStarted", "StageStarted", "StepEnded", "EpochEnded", "RunEnded"}
    assert all(each.__doc__ and not each.__doc__.startswith(f"{each.__name__}(") for each in told)
