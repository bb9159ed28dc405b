"""The checks that plugin authors call: each must find what it is there to find."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit import (
    ContractError,
    KdkitError,
    Match,
    Net,
    SoftTargets,
    Stage,
    Stages,
    Tap,
    Training,
    Truth,
    check_loss,
    check_schedule,
    check_tap,
)

from .tiny import Mlp, hooks_of, plain_goal, same_state, state_of, tiny_net


def mse(student, target):
    return F.mse_loss(student, target)


def test_a_sound_loss_passes_on_outputs_and_on_features():
    check_loss(lambda: mse)
    check_loss(nn.SmoothL1Loss, on="features")


class Blamed(nn.Module):
    """A loss built with the teacher, whose weights it moves."""

    def build(self, student, target, facts, teacher):
        self.teacher = teacher

    def forward(self, student, target):
        head = self.teacher[0]
        return F.mse_loss(head(student.movedim(1, -1)), target.movedim(1, -1))


class Growing(nn.Module):
    """A loss that adds a projector each time it is built."""

    def __init__(self):
        super().__init__()
        self.projectors = nn.ModuleList()

    def build(self, student, target, facts, teacher):
        self.projectors.append(nn.Linear(student[0][1], target[0][1]))

    def forward(self, student, target):
        for projector in self.projectors:
            student = projector(student.movedim(1, -1)).movedim(-1, 1)
        return F.mse_loss(student, target)


class Stepping(nn.Module):
    """A loss whose weight goes on from what an earlier build left."""

    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def build(self, student, target, facts, teacher):
        self.scale *= 2

    def forward(self, student, target):
        return self.scale * F.mse_loss(student, target)


class Counted(nn.Module):
    """A loss that is another one each time it is made."""

    made = 0

    def __init__(self):
        super().__init__()
        Counted.made += 1
        self.factor = Counted.made

    def forward(self, student, target):
        return self.factor * F.mse_loss(student, target)


def in_place(student, target):
    return F.mse_loss(student, target.mul_(1.5))


def viewed(student, target):
    return F.mse_loss(student.view(-1), target.view(-1))


def detached(student, target):
    return F.mse_loss(student.detach(), target)


def unmoved(student, target):
    return (student * 0).sum()


def unreduced(student, target):
    return (student - target) ** 2


def plain_number(student, target):
    return 1.0


def logarithm(student, target):
    return -(target.softmax(1) * student.softmax(1).log()).sum(1).mean()


def standardised(student, target):
    return ((student - student.mean(0)) / student.std(0) - target).square().mean()


def backwards(student, target):
    return -F.mse_loss(student, target).clamp(max=100)


def numpy_bound(student, target):
    return F.mse_loss(student, target) + float(student.detach().numpy().sum()) * 0


def half(student, target):
    with torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu"), dtype=torch.bfloat16):
        return (((student @ target.mT) + 300).float() - 300).square().mean()


def shaken(student, target):
    return F.mse_loss(student, target) * random.random()


@pytest.mark.filterwarnings("ignore:std\\(\\):UserWarning")
@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (viewed, "memory that is not contiguous"),
        (detached, "without a gradient"),
        (unmoved, "moves nothing"),
        (unreduced, "a tensor (4, 5), not a scalar"),
        (plain_number, "gives a float, not a scalar"),
        (in_place, "changes the target's side in place"),
        (logarithm, "on logits of +-10000 of (4, 5)"),
        (standardised, "on a batch of one of (4, 5)"),
        (backwards, "where both sides are equal"),
        (numpy_bound, "bf16 autocast"),
        (shaken, "is not a function of its seed"),
        (half, "in float32 on the same; compute it there"),
    ],
)
def test_a_loss_that_does_not_hold_is_told_what(loss, said):
    with pytest.raises(ContractError) as caught:
        check_loss(lambda: loss)
    assert said in str(caught.value)
    assert str(caught.value).startswith(loss.__name__)


def test_a_loss_that_moves_its_teacher_is_found():
    with pytest.raises(ContractError, match=r"moves the teacher: 0.weight, 0.bias"):
        check_loss(Blamed, on="features", least_when_equal=False)


def test_a_loss_that_is_another_one_if_it_is_built_again_is_found():
    with pytest.raises(ContractError, match=r"has 30 parameters once it is built, and 60 built again"):
        check_loss(Growing, least_when_equal=False)
    with pytest.raises(ContractError, match=r"once it is built, and .* built again"):
        check_loss(Stepping)


def test_a_loss_that_is_not_the_same_twice_is_found():
    with pytest.raises(ContractError, match="is not a function of its seed"):
        check_loss(Counted)


def test_a_loss_is_given_what_it_asks_for():
    seen = {}

    def asking(student, target, *, labels, ids, progress):
        seen.update(labels=labels, ids=ids, progress=progress)
        assert len(labels) == len(ids) == len(student)
        return F.mse_loss(student, target) + F.cross_entropy(student, labels) * 0

    check_loss(lambda: asking)
    assert seen["labels"].dtype == torch.int64
    assert 0 <= seen["progress"] <= 1


def test_other_shapes_may_be_tried():
    shapes = []
    check_loss(
        lambda: lambda student, target: shapes.append(tuple(student.shape)) or mse(student, target), shapes=[(2, 2)]
    )
    assert set(shapes) == {(4, 2, 2), (1, 2, 2)}


def test_checking_leaves_the_random_state_alone():
    module = Mlp()
    before = torch.get_rng_state()
    check_loss(lambda: mse)
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


def stage(net, goal=None, name=""):
    return Stage({net: goal or plain_goal()}, Training(epochs=1), name)


def test_a_sound_schedule_passes():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    check_schedule(lambda: Stages(stage(teacher), stage(student, guided_by(teacher))))


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
