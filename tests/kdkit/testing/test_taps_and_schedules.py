"""The checks of taps and schedules that plugin authors call: each must find what it is there to find."""

import pytest
import torch
from torch import nn

from kdkit import KdkitError, Match, Net, Stage, Tap, Training, Truth
from kdkit.errors import ContractError
from kdkit.losses import SoftTargets
from kdkit.testing import check_loss, check_schedule, check_tap
from tests.helpers.tiny import Mlp, hooks_of, plain_goal, same_state, state_of, tiny_net


def test_checking_leaves_the_random_state_alone():
    module = Mlp()
    before = torch.get_rng_state()
    check_loss(nn.MSELoss)
    check_tap(lambda module: Tap(module.head), module, torch.zeros(2, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_the_contract_error_is_one_of_kdkits():
    assert issubclass(ContractError, KdkitError)


@pytest.mark.parametrize("example", [torch.randn(2, 4), (torch.randn(2, 4),), {"inputs": torch.randn(2, 4)}])
def test_a_sound_tap_passes_and_the_module_is_left_as_it_was(example):
    module = Mlp().train()
    module.norm.eval()
    before = state_of(module)
    check_tap(lambda module: Tap(module.act, "input"), module, example)
    assert same_state(before, state_of(module))


class Custom:
    """A tap of one's own; what is wrong with it is given."""

    def __init__(self, module, attach):
        self.module = module
        self._attach = attach

    def attach(self, put):
        return self._attach(self.module, put)


def forgetting(module, put):
    module.register_forward_hook(lambda *given: put(given[-1]))
    return lambda: None


def changing(module, put):
    return module.register_forward_hook(lambda *given: put(given[-1]) or given[-1] + 1).remove


def cutting(module, put):
    return module.register_forward_hook(lambda *given: put(given[-1].detach())).remove


def silent(module, put):
    return lambda: None


def listing(module, put):
    return module.register_forward_hook(lambda *given: put(given[-1].tolist())).remove


def breaking(module, put):
    handle = module.register_forward_hook(lambda *given: put(given[-1]))

    def detach():
        handle.remove()
        module.bias.data += 1

    return detach


@pytest.mark.parametrize(
    ("attach", "said"),
    [
        (forgetting, "leaves a hook behind"),
        (changing, "something else while Custom is open"),
        (cutting, "no gradient flows through"),
        (silent, "does not fire"),
        (listing, "raises AttributeError with Custom"),
        (breaking, "something else after Custom was closed"),
    ],
)
def test_a_tap_that_does_not_hold_is_told_what(attach, said):
    with pytest.raises(ContractError, match=said):
        check_tap(lambda module: Custom(module.head, attach), Mlp(), torch.randn(2, 4))


def test_a_tap_on_a_stranger_is_found():
    with pytest.raises(ContractError, match="sits on a Linear that is no part of the module"):
        check_tap(lambda module: Tap(nn.Linear(4, 4)), Mlp(), torch.randn(2, 4))


def test_what_is_no_tap_is_found():
    with pytest.raises(ContractError, match="is not a tap"):
        check_tap(lambda module: module.head, Mlp(), torch.randn(2, 4))


def test_a_failed_check_leaves_the_module_without_hooks():
    module = Mlp()
    with pytest.raises(ContractError):
        check_tap(lambda module: Custom(module.head, cutting), module, torch.randn(2, 4))
    assert hooks_of(module) == 0


def stage(net, objective=None, name=""):
    return Stage({net: objective or plain_goal()}, Training(epochs=1), name)


def test_a_sound_schedule_passes():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    check_schedule(lambda: [stage(teacher), stage(student, guided_by(teacher))])


def guided_by(teacher):
    return Match(teacher, SoftTargets())


class Given:
    def __init__(self, *stages):
        self.given = stages

    def stages(self):
        return self.given


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Given(), "at least one; got none"),
        (lambda: Given("first"), "got str"),
        (
            lambda: Given(stage(tiny_net("a"), name="x"), stage(tiny_net("b"), name="x")),
            "stages of the same name: x, x",
        ),
        (lambda: Given(stage(tiny_net("a"), name="x"), stage(tiny_net("a"), name="y")), "nets of the same name: a, a"),
        (lambda: Given(stage(tiny_net("s"), guided_by(tiny_net("t")))), "net 't' teaches, but nobody trained it"),
        (lambda: tiny_net("net"), "is not a schedule"),
    ],
)
def test_a_schedule_that_does_not_hold_is_told_what(make, said):
    with pytest.raises(ContractError, match=said):
        check_schedule(make)


def test_a_net_that_teaches_before_it_is_trained_is_found():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    with pytest.raises(ContractError, match="nobody trained it before"):
        check_schedule(lambda: Given(stage(student, guided_by(teacher)), stage(teacher)))


def test_a_net_that_comes_trained_may_teach_at_once():
    teacher = Net("teacher", Mlp(), trained=True)
    check_schedule(lambda: Given(stage(tiny_net("student"), guided_by(teacher) + Truth(nn.CrossEntropyLoss()))))
