"""check_tap and check_schedule, the contract checks for plugin authors: each reports its faults."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdkit import Ema, KdkitError, Match, Net, Past, Peer, Stage, Tap, Training, Truth
from kdkit.errors import ContractError
from kdkit.losses import SoftTargets
from kdkit.testing import check_loss, check_schedule, check_tap
from tests.helpers.tiny import Mlp, hooks_of, plain_goal, same_state, state_of, tiny_net


def test_the_checks_preserve_the_random_state():
    module = Mlp()
    before = torch.get_rng_state()
    check_loss(nn.MSELoss)
    check_tap(lambda module: Tap(module.head), module, torch.zeros(2, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_the_contract_error_is_a_kdkit_error():
    assert issubclass(ContractError, KdkitError)


@pytest.mark.parametrize("example", [torch.randn(2, 4), (torch.randn(2, 4),), {"inputs": torch.randn(2, 4)}])
def test_a_correct_tap_passes_and_the_module_is_unchanged(example):
    module = Mlp().train()
    module.norm.eval()
    before = state_of(module)
    check_tap(lambda module: Tap(module.act, "input"), module, example)
    assert same_state(before, state_of(module))


class Custom:
    """A user-defined tap; `attach` has its fault."""

    def __init__(self, module, attach):
        self.module = module
        self._attach = attach

    def attach(self, put):
        return self._attach(self.module, put)


def forgetting(module, put):
    module.register_forward_hook(lambda *args: put(args[-1]))
    return lambda: None


def changing(module, put):
    return module.register_forward_hook(lambda *args: put(args[-1]) or args[-1] + 1).remove


def cutting(module, put):
    return module.register_forward_hook(lambda *args: put(args[-1].detach())).remove


def silent(module, put):
    return lambda: None


def listing(module, put):
    return module.register_forward_hook(lambda *args: put(args[-1].tolist())).remove


def returning_a_handle(module, put):
    return module.register_forward_hook(lambda *args: put(args[-1]))


def breaking(module, put):
    handle = module.register_forward_hook(lambda *args: put(args[-1]))

    def detach():
        handle.remove()
        module.bias.data += 1

    return detach


@pytest.mark.parametrize(
    ("attach", "message"),
    [
        (forgetting, "leaves a hook behind"),
        (changing, "the output of the module changes while Custom is open"),
        (cutting, "no gradient flows through"),
        (silent, "does not fire"),
        (listing, "the tap on Linear must capture a tensor; Custom passes a list"),
        (
            returning_a_handle,
            r"Custom.attach\(\) must return a function .*, such as handle.remove; got <torch.utils.hooks",
        ),
        (breaking, "the output of the module changes after Custom is closed"),
    ],
)
def test_a_faulty_tap_is_reported(attach, message):
    with pytest.raises(ContractError, match=message):
        check_tap(lambda module: Custom(module.head, attach), Mlp(), torch.randn(2, 4))


class WithOutputs(nn.Module):
    """A network whose output is an object."""

    def __init__(self, make):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.make = make

    def forward(self, inputs):
        return self.make(self.head(inputs))


@dataclass
class Outputs:
    logits: torch.Tensor


@pytest.mark.parametrize(
    "make",
    [
        Outputs,
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: None,
        lambda logits: logits + torch.randn(3),  # as a variational autoencoder does
    ],
)
def test_the_output_of_the_module_may_be_an_object_or_random(make):
    check_tap(lambda module: Tap(module.head), WithOutputs(make), torch.randn(2, 4))


@pytest.mark.parametrize(("attach", "message"), [(changing, "the output of the module changes"), (cutting, "gradient")])
def test_a_faulty_tap_on_a_module_that_returns_a_dataclass_is_reported(attach, message):
    with pytest.raises(ContractError, match=message):
        check_tap(lambda module: Custom(module.head, attach), WithOutputs(Outputs), torch.randn(2, 4))


def test_a_tap_on_another_module_is_reported():
    with pytest.raises(ContractError, match="is on a Linear that is not a part of the module"):
        check_tap(lambda module: Tap(nn.Linear(4, 4)), Mlp(), torch.randn(2, 4))


def test_an_object_that_is_not_a_tap_is_reported():
    with pytest.raises(ContractError, match="is not a tap"):
        check_tap(lambda module: module.head, Mlp(), torch.randn(2, 4))


def test_a_failed_check_leaves_the_module_without_hooks():
    module = Mlp()
    with pytest.raises(ContractError):
        check_tap(lambda module: Custom(module.head, cutting), module, torch.randn(2, 4))
    assert hooks_of(module) == 0
    with pytest.raises(ContractError):
        check_tap(lambda module: Custom(module.head, returning_a_handle), module, torch.randn(2, 4))
    assert hooks_of(module) == 0


def test_a_tap_or_a_schedule_instead_of_a_function_is_reported():
    module = Mlp()
    with pytest.raises(ContractError, match=r"check_tap takes a function .*, such as lambda module: .*; got Tap"):
        check_tap(Tap(module.head), module, torch.randn(2, 4))
    with pytest.raises(ContractError, match=r"check_schedule takes a function .*, such as lambda: my_schedule; got"):
        check_schedule(FixedSchedule())


def stage(net, objective=None, name=""):
    return Stage({net: objective or plain_goal()}, Training(epochs=1), name)


def test_a_correct_schedule_passes():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    check_schedule(lambda: [stage(teacher), stage(student, guided_by(teacher))])


def guided_by(teacher):
    return Match(teacher, SoftTargets())


class FixedSchedule:
    """A schedule with these stages."""

    def __init__(self, *stages):
        self.fixed = stages

    def stages(self):
        return self.fixed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedSchedule(), "must return at least one Stage, and nothing else; got none"),
        (lambda: FixedSchedule("first"), "got str"),
        (lambda: SimpleNamespace(stages=lambda: None), "SimpleNamespace must return at least one Stage, .*; got none"),
        (
            lambda: FixedSchedule(stage(tiny_net("a"), name="x"), stage(tiny_net("b"), name="x")),
            "stages with the same name: x, x",
        ),
        (
            lambda: FixedSchedule(stage(tiny_net("a"), name="x"), stage(tiny_net("a"), name="y")),
            "nets with the same name: a, a",
        ),
        (
            lambda: FixedSchedule(stage(tiny_net("s"), guided_by(tiny_net("t")))),
            "has net 't' as a teacher, but no earlier",
        ),
        (lambda: tiny_net("net"), "is not a schedule"),
    ],
)
def test_a_faulty_schedule_is_reported(make, message):
    with pytest.raises(ContractError, match=message):
        check_schedule(make)


def test_a_teacher_that_is_trained_later_is_reported():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    with pytest.raises(ContractError, match="no earlier stage trains it"):
        check_schedule(lambda: FixedSchedule(stage(student, guided_by(teacher)), stage(teacher)))


def test_a_teacher_that_is_trained_in_the_same_stage_is_reported():
    net, student = tiny_net("net"), tiny_net("student")
    both = Stage({net: plain_goal(), student: guided_by(net)}, Training(epochs=1), "both")
    with pytest.raises(ContractError, match="trains net 'net', which is also a frozen teacher"):
        check_schedule(lambda: FixedSchedule(stage(net), both))


@pytest.mark.parametrize("kind", [Peer, Past, Ema])
def test_a_teacher_that_follows_a_net_of_another_stage_is_reported(kind):
    net, student = tiny_net("net"), tiny_net("student")
    with pytest.raises(ContractError, match="but does not train net 'net'; match the net itself"):
        check_schedule(lambda: FixedSchedule(stage(net), stage(student, guided_by(kind(net)))))
    check_schedule(lambda: [Stage({net: guided_by(kind(net))}, Training(epochs=1))])


def test_a_trained_net_can_be_a_teacher_in_the_first_stage():
    teacher = Net("teacher", Mlp(), trained=True)
    check_schedule(lambda: FixedSchedule(stage(tiny_net("student"), guided_by(teacher) + Truth(nn.CrossEntropyLoss()))))
