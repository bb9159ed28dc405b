"""A network in eval mode for a while."""

import pytest

from kdkit.utils.modules import eval_mode
from tests.helpers.tiny import tiny_net


def test_every_part_evaluates_and_gets_its_own_mode_back_also_after_an_error():
    module = tiny_net("net").module.train()
    module.norm.eval()
    before = [each.training for each in module.modules()]
    seen = []

    def evaluated():
        with eval_mode(module):
            seen.extend(each.training for each in module.modules())
            raise KeyError

    with pytest.raises(KeyError):
        evaluated()
    assert seen
    assert not any(seen)
    assert [each.training for each in module.modules()] == before


def test_what_has_no_mode_is_left_alone():
    with eval_mode(len):
        pass
