"""Where, in which precision and from which seed."""

import random

import numpy as np
import pytest
import torch

from kdkit import RecipeError, RunOptions
from kdkit.utils.devices import find_device
from kdkit.utils.randomness import seed_everything


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"precision": "bf15"}, "did you mean 'bf16'"),
        ({"seed": -1}, "a seed is a whole number"),
        ({"seed": 1.5}, "a seed is a whole number"),
        ({"seed": 2**63}, "a seed is a whole number"),
        ({"resume": True}, "which run folder to go on with: --out FOLDER, or out=FOLDER in Python"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(RecipeError, match=said):
        RunOptions(**wrong)


def test_the_cpu_is_always_there():
    assert find_device("cpu") == torch.device("cpu")
    assert RunOptions(device="cpu").torch_device() == torch.device("cpu")


def test_auto_is_a_device_that_can_compute():
    assert torch.ones(2, device=find_device("auto")).sum().item() == 2


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "", "cpu:x"])
def test_an_unavailable_device_is_refused_with_the_available_ones(name):
    with pytest.raises(RecipeError, match=r"is not available \(there are: cpu"):
        find_device(name)


def test_nothing_can_be_computed_on_meta():
    with pytest.raises(RecipeError, match="meta"):
        find_device("meta")


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_forward_passes_run_in_the_precision_asked_for(precision, kind):
    cpu = torch.device("cpu")
    with RunOptions(precision=precision).autocast(cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind


def test_a_seed_sets_every_random_state():
    def drawn():
        return random.random(), np.random.random(), torch.rand(1).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed_everything(2**40 + 3)  # more than numpy's global state takes
        first = drawn()
        seed_everything(2**40 + 3)
        assert drawn() == first
        seed_everything(4)
        assert all(one != other for one, other in zip(drawn(), first, strict=True))
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
