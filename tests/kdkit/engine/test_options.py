"""The options of a run: device, precision and seed."""

import json
import random

import numpy as np
import pytest
import torch

from kdkit import RecipeError, RunOptions, Training
from kdkit.utils.devices import autocast, find_device
from kdkit.utils.randomness import seed_everything


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "bf15"}, "'bf15' is not a precision; did you mean 'bf16'"),
        ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
        ({"seed": 1.5}, r"seed must be an integer of at least 0; got 1\.5"),
        ({"seed": 2**63}, r"seed must be below 2 \*\* 63, which torch takes; got 9223372036854775808"),
        ({"seed": True}, "seed must be an integer of at least 0; got True"),
        ({"gradients": -1}, "gradients must be an integer of at least 0; got -1"),
        ({"resume": True}, "to resume, pass the run folder: --out FOLDER, or out=FOLDER in Python"),
        ({"out": 3}, "out must be the path of a folder, or None; got 3"),
        ({"only": "student", "out": "runs/first"}, "only must be a tuple of names of stages, or None; got 'student'"),
    ],
)
def test_invalid_options_are_refused(option, message):
    with pytest.raises(RecipeError, match=message):
        RunOptions(**option)


@pytest.mark.parametrize(
    "name", ["baseline", "compile", "deterministic", "force", "measure", "progress", "resume", "verbose"]
)
def test_a_text_is_no_switch(name):
    with pytest.raises(RecipeError, match=f"{name} must be True or False; got 'no'"):
        RunOptions(**{name: "no"}, out="runs/first")


def test_integers_of_numpy_are_kept_as_ints():
    options = RunOptions(seed=np.int64(3), gradients=np.uint8(2), keep_checkpoints=np.int32(1))
    assert [type(value) for value in (options.seed, options.gradients, options.keep_checkpoints)] == [int] * 3
    # run.json has the options.
    training = Training(epochs=np.int64(3), batch_size=np.int64(8), patience=np.int64(2), workers=np.int64(0))
    assert json.dumps([training.epochs, training.batch_size, training.patience, training.workers]) == "[3, 8, 2, 0]"


def test_the_cpu_is_always_available():
    assert find_device("cpu") == torch.device("cpu")
    assert RunOptions(device="cpu").torch_device() == torch.device("cpu")


def test_auto_is_a_device_that_can_compute():
    assert torch.ones(2, device=find_device("auto")).sum().item() == 2


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "", "cpu:x", None])
def test_an_unavailable_device_is_refused_with_the_available_ones(name):
    with pytest.raises(RecipeError, match=r"is not available \(there are: cpu"):
        find_device(name)


def test_the_meta_device_is_refused():
    # torch accepts it, but its tensors have no values.
    with pytest.raises(RecipeError, match="meta"):
        find_device("meta")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_forward_passes_run_in_the_chosen_precision(precision, dtype):
    cpu = torch.device("cpu")
    with autocast(precision, cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_seed_everything_sets_the_random_states_of_python_numpy_and_torch():
    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed_everything(2**40 + 3)  # numpy's global state takes seeds of 32 bits only
        first = draw()
        seed_everything(2**40 + 3)
        assert draw() == first
        seed_everything(4)
        assert all(value != before for value, before in zip(draw(), first, strict=True))
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
