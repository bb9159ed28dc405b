"""The random states of the process, which runs restore and threads share."""

import random
import threading

import numpy as np
import pytest
import torch

import kdkit
from kdkit.utils import randomness
from kdkit.utils.randomness import exclusive_rng_state
from tests.helpers.tiny import Mlp, one_stage, plain_goal, tiny_data


def in_thread(entered):
    with exclusive_rng_state():
        entered.set()


def test_a_thread_waits_for_the_one_that_uses_the_random_states():
    entered = threading.Event()
    thread = threading.Thread(target=in_thread, args=(entered,))
    with exclusive_rng_state():
        with exclusive_rng_state():  # the same thread may enter it again
            thread.start()
        assert not entered.wait(0.05)
    thread.join(timeout=10)
    assert entered.is_set()


def test_a_forked_process_does_not_wait_for_a_thread_of_its_parent():
    entered = threading.Event()
    with exclusive_rng_state():
        randomness._renew_turn()
        thread = threading.Thread(target=in_thread, args=(entered,))
        thread.start()
        thread.join(timeout=10)
    assert entered.is_set()


def recipe():
    random.random(), np.random.rand()
    net = kdkit.Net("student", Mlp(), trained=True)
    return one_stage(net, plain_goal(), tiny_data())


@pytest.mark.parametrize("function", ["check", "evaluate"])
def test_random_states_are_the_same_after_a_function_of_kdkit(function, tmp_path):
    torch.save(Mlp().state_dict(), tmp_path / "weights.pt")
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1]
    if function == "check":
        kdkit.check(recipe)
    else:
        kdkit.evaluate(recipe, tmp_path / "weights.pt")
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()
