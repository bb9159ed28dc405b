"""Tests of nested states in checkpoints: what goes in comes out, and nothing that could run code goes in."""

import json
import math
import random
import re
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdkit.engine.storage.nested_state import flatten, unflatten
from kdkit.errors import RunFolderError
from kdkit.utils.sealed import tensor_parts


def round_trip(state):
    """Return a state as it is read again, through the JSON of a file."""
    tensors, encoded = flatten(state)
    tensors = safetensors.torch.load(b"".join(tensor_parts(tensors, {})))
    assert all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors.values())
    return unflatten(tensors, json.loads(json.dumps(encoded, allow_nan=False)))


def same(first, second):
    """Whether two nested values are equal, with their types; NaN is equal to NaN."""
    if isinstance(first, np.ndarray | np.generic):
        return type(first) is type(second) and first.dtype == second.dtype and first.tobytes() == second.tobytes()
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return all(map(same, first.items(), second.items())) and len(first) == len(second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second or (first != first and second != second)


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.complex_numbers(),
    st.sampled_from([torch.bfloat16, torch.int64]),
)
KEYS = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()))
TENSORS = st.lists(st.floats(width=32, allow_nan=False), max_size=4).map(torch.tensor)
ARRAYS = st.sampled_from(["f4", "f8", "i8", "u4", "?", "c8"]).flatmap(
    lambda dtype: st.lists(st.integers(0, 1), max_size=3).map(lambda values: np.array(values, dtype))
)
NESTED = st.recursive(
    PLAIN | TENSORS | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict)
        | st.frozensets(st.integers() | st.text(), max_size=4)
        | st.sets(st.integers() | st.text(), max_size=4)
    ),
    max_leaves=12,
)


@given(NESTED)
def test_any_nested_state_is_read_as_it_was_written(state):
    assert same(round_trip(state), state)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(3),
        torch.zeros(0, 3),
        torch.tensor([1.5, math.inf, -0.0], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.arange(3, dtype=torch.uint8),
        torch.randn(3, dtype=torch.complex64),
        torch.randn(2, 3, dtype=torch.complex128).T,
        torch.tensor(1j, dtype=torch.complex128),
        torch.ones(2).to(torch.float8_e5m2),
        np.float32(1.5),
        np.int64(-1),
        np.bool_(True),
        np.zeros((0, 2), "f4"),
        np.arange(6).reshape(2, 3).T,  # not contiguous
        np.arange(3, dtype=np.uint16),
        np.arange(3, dtype=">i4"),  # of the other byte order
        {"dict": 1},  # keys that are names of kinds
        {"tensor": "x"},
        {"": {"": torch.ones(1)}},
        {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}},  # of the same path
        {1: torch.ones(1), "1": torch.zeros(1)},
    ],
)
def test_every_kind_of_value_is_read_as_it_was_written(value):
    assert same(round_trip(value), value)


class OwnTensor(torch.Tensor):
    """A user-defined class of tensors."""


def test_subclasses_that_states_of_torch_have_become_their_plain_kind():
    assert same(round_trip(defaultdict(list, a=[1])), {"a": [1]})
    assert same(round_trip(Counter(a=2)), Counter(a=2))  # that of MultiStepLR
    assert round_trip(torch.Size([2, 3])) == (2, 3)
    for tensor in (nn.Parameter(torch.ones(2)), torch.ones(2).as_subclass(OwnTensor)):
        assert same(round_trip(tensor), torch.ones(2))


def test_tensors_of_a_state_are_copies_that_share_no_memory():
    tensor = torch.zeros(4)
    tensors, _ = flatten({"a": tensor, "b": tensor, "c": tensor[:2], "d": torch.zeros(1).expand(3)})
    tensor += 1
    assert len({value.data_ptr() for value in tensors.values()}) == 4
    assert not any(value.any() for value in tensors.values())


def test_random_states_are_read_as_they_were_written():
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    restored = round_trip(states)
    expected = random.random(), np.random.random(), torch.rand(1)
    random.setstate(restored["python"])
    np.random.set_state(restored["numpy"])
    torch.set_rng_state(restored["torch"])
    assert (random.random(), np.random.random(), torch.rand(1)) == expected


# torch before 2.11 reads the loss of LBFGS so
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
def test_the_state_of_every_optimizer_and_schedule_is_read_as_it_was_written():
    module = nn.Linear(2, 2)
    for make in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.LBFGS):
        optimizer = make(module.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3])

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            loss = module(torch.ones(1, 2)).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        schedule.step()
        for state in (optimizer.state_dict(), schedule.state_dict()):
            assert same(round_trip(state), state), make


class Own:
    """A class of the user."""


class Number(int):
    """A subclass of a plain kind, which JSON would turn into that kind."""


@pytest.mark.parametrize(
    "value",
    [
        Own(),
        Own,
        lambda: 0,
        deque([1]),
        Number(3),
        np.array([Own()]),
        np.array(["text"]),
        np.ones(2, np.longdouble),
        torch.device("cpu"),
        torch.eye(2).to_sparse(),
        np.ones(2, np.complex128),
        range(3),
    ],
)
def test_anything_else_is_refused_with_its_path(value):
    with pytest.raises(RunFolderError, match=re.escape("but optimizer.0.name is a ")) as error:
        flatten({"optimizer": [{"name": value}]})
    assert "tensors and plain values only" in str(error.value)
    assert "change the state_dict() that it is part of" in str(error.value)


def test_a_value_of_an_unknown_kind_is_refused():
    for encoded in ({"module": "os"}, {}, {"x": [1]}):
        with pytest.raises(ValueError, match="unknown kind"):
            unflatten({}, encoded)
    with pytest.raises(KeyError):
        unflatten({}, {"torch_dtype": "load"})
