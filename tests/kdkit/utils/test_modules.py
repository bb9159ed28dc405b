"""Tests of running a network in eval mode temporarily."""

import pytest

from kdkit.utils.modules import eval_mode
from tests.helpers.tiny import tiny_net


def test_every_submodule_is_in_eval_mode_and_gets_its_mode_back_after_an_error():
    module = tiny_net("net").module.train()
    module.norm.eval()
    before = [submodule.training for submodule in module.modules()]
    inside = []

    def fail_in_eval_mode():
        with eval_mode(module):
            inside.extend(submodule.training for submodule in module.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_eval_mode()
    assert inside
    assert not any(inside)
    assert [submodule.training for submodule in module.modules()] == before


def test_an_object_without_a_mode_is_left_unchanged():
    with eval_mode(len):
        pass
