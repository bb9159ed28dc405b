"""What a captured step keeps on the CPU: the inputs that it reads, and the state that a replay does not change."""

import random
from collections import deque
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from kdkit import Batch
from kdkit.engine.training.capture import _StaticInputs
from kdkit.engine.training.python_state import PythonState
from kdkit.teachers.base import TeacherOutput


@dataclass(slots=True)
class Helper:
    """An object in an attribute of a module."""

    calls: int = 0


class Tool(Helper):
    """An object with the slots of its base class."""

    __slots__ = ()


def counter():
    calls = 0

    def count():
        nonlocal calls
        calls += 1

    return count


STEPS = 0


class Loss(nn.Module):
    """A loss that depends on a global variable."""

    def forward(self, student, target):
        return (student - target).sum() * STEPS


def weighted(student, target):
    return (student - target).sum() * STEPS


class Owner(nn.Module):
    """A module with state of every kind."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.kept = []
        self.centre = torch.zeros(2)
        self.register_buffer("mean", torch.zeros(2))
        self.queue = deque([1, 2], maxlen=2)
        self.nested = {"counts": {"steps": 0}}
        self.helpers = [Helper(), Tool()]
        self.array = np.array([0.0, np.nan])
        self.count = counter()
        self.random, self.numpy_random = random.Random(0), np.random.default_rng(0)
        self.generator = torch.Generator()


def replace_buffer(owner):
    owner.mean = owner.mean + 1


CHANGES = {
    "attribute 'calls' of Owner": lambda owner: setattr(owner, "calls", owner.calls + 1),
    "attribute 'kept' of Owner": lambda owner: owner.kept.append(1),
    "attribute 'centre' of Owner": lambda owner: setattr(owner, "centre", torch.ones(2)),
    "attribute 'mean' of Owner": replace_buffer,
    "attribute 'centre' of Owner ": lambda owner: owner.centre.add_(1),
    "attribute 'mean' of Owner ": lambda owner: owner.mean.add_(1),
    "attribute 'queue' of Owner": lambda owner: owner.queue.append(3),
    "attribute 'nested' of Owner": lambda owner: owner.nested["counts"].update(steps=1),
    "attribute 'calls' of Helper": lambda owner: setattr(owner.helpers[0], "calls", 1),
    "attribute 'calls' of Tool": lambda owner: setattr(owner.helpers[1], "calls", 1),
    "attribute 'array' of Owner": lambda owner: owner.array.fill(1),
    "variable 'calls' of count": lambda owner: owner.count(),
    "attribute 'random' of Owner": lambda owner: owner.random.random(),
    "attribute 'numpy_random' of Owner": lambda owner: owner.numpy_random.random(),
    "attribute 'generator' of Owner": lambda owner: torch.rand(1, generator=owner.generator),
    "the random state of Python": lambda _: random.random(),
    "the random state of numpy": lambda _: np.random.rand(),
    "the random state of the CPU": lambda _: torch.rand(1),
}


@pytest.mark.parametrize("description", CHANGES)
def test_a_change_that_a_replay_would_not_repeat_is_named_and_undone(description):
    owner = Owner()
    state = PythonState([owner])
    CHANGES[description](owner)
    assert state.changes() == [description.strip()]
    state.restore()
    assert state.changes() == []
    assert (owner.calls, owner.kept, owner.mean.tolist(), owner.centre.tolist()) == (0, [], [0, 0], [0, 0])


@pytest.mark.parametrize(
    ("description", "change"),
    [
        ("attribute 'weight' of Linear", lambda layer: layer.weight.requires_grad_(False)),
        ("attribute 'weight' of Linear", lambda layer: setattr(layer.weight, "data", layer.weight.data.clone())),
        ("attribute 'training' of Linear", lambda layer: layer.eval()),
        ("a hook", lambda layer: layer.register_forward_hook(print)),
    ],
    ids=["frozen", "other memory", "mode", "hook"],
)
def test_a_change_of_a_network_between_two_epochs_is_named(description, change):
    network = nn.Sequential(nn.Linear(2, 2))
    state = PythonState([network])
    change(network[0])
    assert state.changed_attributes() == [description]


def test_a_changed_element_of_a_list_or_dict_is_named_and_undone():
    owner = Owner()
    owner.kept, owner.counts = [0, torch.zeros(1, device="meta")], {"steps": 0}
    state = PythonState([owner])
    owner.kept[1].add_(1)
    assert state.changes() == []
    owner.kept[0], owner.counts["steps"] = 1, 1
    assert state.changes() == ["attribute 'kept' of Owner", "attribute 'counts' of Owner"]
    state.restore()
    assert (owner.kept[0], owner.counts) == (0, {"steps": 0})


@pytest.mark.parametrize("loss", [Loss(), weighted], ids=["module", "function"])
def test_a_global_variable_that_code_reads_is_compared(loss, monkeypatch):
    state = PythonState([loss])
    monkeypatch.setitem(globals(), "STEPS", 1)
    assert state.changes() == ["global variable 'STEPS'"]
    state.restore()
    assert STEPS == 0


@pytest.mark.parametrize("loss", [partial(weighted), partial(Loss().forward), Loss().forward])
def test_code_in_a_partial_or_a_method_is_compared_too(loss, monkeypatch):
    state = PythonState([loss])
    monkeypatch.setitem(globals(), "STEPS", 1)
    assert state.changes() == ["global variable 'STEPS'"]


def test_an_attribute_of_a_class_is_compared_and_restored(monkeypatch):
    monkeypatch.setattr(Loss, "scale", 1.0, raising=False)
    state = PythonState([Loss()])
    Loss.scale = 2.0
    assert state.changes() == ["attribute 'scale' of the class Loss"]
    state.restore()
    assert Loss.scale == 1.0


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature", "ignore:The PyTorch API of nested tensors")
def test_tensors_without_memory_of_their_own_are_no_change():
    owner = Owner()
    owner.unused = nn.LazyLinear(2)
    owner.parts = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    assert PythonState([owner]).changes() == []


def test_tensors_on_a_device_that_are_filled_in_place_are_no_change():
    owner = Owner().to("meta")
    owner.centre = owner.centre.to("meta")
    state = PythonState([owner, object()])
    owner.mean += 1
    owner.centre.add_(1)
    assert state.changes() == []


def batch(rows=4, value=0.0, inputs=None):
    inputs = {"signal": torch.full((rows, 3), value)} if inputs is None else inputs
    return Batch(inputs, torch.full((rows,), int(value)), torch.arange(rows), draw=int(value))


def outputs(rows=4, value=0.0):
    return {"teacher": TeacherOutput(torch.full((rows, 2), value), (torch.full((rows, 5), value),))}


def test_a_batch_of_the_same_shapes_is_copied_into_the_static_one():
    static = _StaticInputs.like(batch(), outputs())
    assert static.fill(batch(value=7.0), outputs(value=3.0))
    assert static.batch.inputs["signal"].unique().tolist() == [7]
    assert static.batch.labels.unique().tolist() == [7]
    assert static.outputs["teacher"].output.unique().tolist() == [3]
    assert static.outputs["teacher"].features[0].unique().tolist() == [3]


def test_the_draw_is_hidden_from_a_captured_step_since_it_would_never_change():
    assert _StaticInputs.like(batch(value=2.0), outputs()).batch.draw is None


@pytest.mark.parametrize(
    "other",
    [
        (batch(rows=3), outputs(rows=3)),
        (batch(inputs={"other": torch.zeros(4, 3)}), outputs()),
        (batch(inputs={"signal": torch.zeros(4, 3, dtype=torch.float64)}), outputs()),
        (batch(inputs={"signal": torch.zeros(4, 3), "more": torch.zeros(4)}), outputs()),
        (batch(), {"teacher": TeacherOutput(torch.zeros(4, 2), (torch.zeros(4, 5),), torch.ones(4, dtype=torch.bool))}),
    ],
    ids=["rows", "key", "dtype", "one more", "mask"],
)
def test_a_batch_of_other_shapes_is_not_copied(other):
    static = _StaticInputs.like(batch(value=1.0), outputs())
    assert not static.fill(*other)
    assert static.batch.labels.unique().tolist() == [1]


def test_inputs_that_hold_anything_but_tensors_cannot_be_captured():
    assert _StaticInputs.like(batch(inputs={"signal": torch.zeros(4, 3), "name": "a"}), outputs()) is None
