"""How a stage is trained: what is refused, and what optimizers and learning rates are made of."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    StepLR,
)

from kdkit import AverageWeights, LRSchedule, Match, Optimizer, RecipeError, Tap, Training, run
from kdkit.losses import Hint
from tests.helpers.tiny import one_stage, plain_goal, tiny_net


def named():
    return [("net.weight", nn.Parameter(torch.ones(2, 2))), ("net.norm.bias", nn.Parameter(torch.ones(2)))]


def sgd(rate=1.0):
    return torch.optim.SGD([each for _, each in named()], lr=rate)


def rates(schedule, steps, optimizer=None):
    optimizer = optimizer or sgd()
    made = schedule.build(optimizer, epochs=4, updates=8)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return seen


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "epochs is a whole number of at least 1; got 0"),
        ({"epochs": 1.5}, "epochs is a whole number"),
        ({"epochs": True}, "epochs is a whole number"),
        ({"batch_size": 0}, "batch_size is a whole number"),
        ({"accumulate_steps": 0}, "accumulate_steps is a whole number"),
        ({"workers": -1}, "workers is a whole number of at least 0"),
        ({"max_grad_norm": 0}, "max_grad_norm is the largest norm"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm is the largest norm"),
        ({"max_grad_norm": "1"}, "max_grad_norm is the largest norm of the gradient, a number above 0; got '1'"),
        ({"max_grad_norm": True}, "max_grad_norm is the largest norm"),
        ({"keep": "first"}, "keep is 'best' or 'last'"),
        ({"optimizer": torch.optim.Adam}, "optimizer is Optimizer"),
        ({"lr_schedule": 0.1}, "learning_rate is LRSchedule"),
        ({"ema": 0.999}, "average is AverageWeights"),
    ],
)
def test_a_training_that_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(RecipeError, match=said):
        Training(**{"epochs": 1, **wrong})


def test_two_trainings_do_not_share_a_default():
    assert Training(epochs=1).optimizer is not Training(epochs=1).optimizer


def test_an_optimizer_is_made_of_its_class_and_options():
    made = Optimizer(torch.optim.AdamW, lr=0.02, weight_decay=0.3).build(named())
    assert isinstance(made, torch.optim.AdamW)
    assert made.param_groups[0]["lr"] == 0.02
    assert made.param_groups[0]["weight_decay"] == 0.3


def test_each_build_makes_an_optimizer_of_its_own():
    optimizer = Optimizer(torch.optim.SGD, lr=0.1)
    assert optimizer.build(named()) is not optimizer.build(named())


def test_an_option_that_an_optimizer_does_not_have_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match="Adam has no option 'weight_decy'; did you mean 'weight_decay'"):
        Optimizer(torch.optim.Adam, weight_decy=0.1)


def test_options_that_an_optimizer_refuses_are_a_recipe_error():
    with pytest.raises(RecipeError, match=r"Optimizer\(SGD, lr=-1\) cannot be made: Invalid learning rate"):
        Optimizer(torch.optim.SGD, lr=-1).build(named())


def test_an_optimizer_may_be_made_by_a_function():
    made = functools.partial(torch.optim.SGD, momentum=0.5)
    optimizer = Optimizer(made, lr=0.1)
    assert optimizer.build(named()).param_groups[0]["momentum"] == 0.5
    assert "lr=0.1" in repr(optimizer)


def by_dimension(named):
    return [
        {"params": (each for _, each in named if each.ndim > 1)},
        {"params": [each for name, each in named if name.endswith("bias")], "weight_decay": 0.0, "lr": 0.5},
    ]


@pytest.mark.parametrize("make", [torch.optim.AdamW, "adamw"])
def test_groups_by_name_have_options_of_their_own(make):
    optimizer = Optimizer(make, lr=0.1, weight_decay=0.3, groups=by_dimension).build(named())
    matrices, vectors = optimizer.param_groups
    assert (matrices["lr"], matrices["weight_decay"], matrices["params"][0].ndim) == (0.1, 0.3, 2)
    assert (vectors["lr"], vectors["weight_decay"], vectors["params"][0].ndim) == (0.5, 0.0, 1)


def steps(optimizer, named, number):
    for count in range(number):
        for _, each in named:
            each.grad = torch.full_like(each, 0.1 * count - 0.3)
        optimizer.step()
    return [each.detach() for _, each in named]


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("groups", [None, by_dimension])
def test_adam_is_fused_on_a_processor_and_moves_as_it_did(make, groups):
    mine, theirs = named(), named()
    fused = Optimizer(make, lr=0.1, weight_decay=0.3, groups=groups).build(mine)
    plain = Optimizer(make, lr=0.1, weight_decay=0.3, groups=groups, fused=False).build(theirs)
    assert all(group["fused"] for group in fused.param_groups)
    assert not any(group["fused"] for group in plain.param_groups)
    for got, wanted in zip(steps(fused, mine, 9), steps(plain, theirs, 9), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.NAdam, {}),
        (torch.optim.Adam, {"foreach": True}),
        (torch.optim.Adam, {"differentiable": True}),
        (torch.optim.AdamW, {"groups": lambda named: [{"params": [each for _, each in named], "foreach": True}]}),
        (functools.partial(torch.optim.Adam, amsgrad=True), {}),
    ],
)
def test_another_optimizer_or_choice_is_left_as_it_is(make, options):
    assert not any(group.get("fused") for group in Optimizer(make, lr=0.1, **options).build(named()).param_groups)


def test_parameters_elsewhere_are_left_to_torchs_own_choice():
    elsewhere = [(name, nn.Parameter(each.detach().to("meta"))) for name, each in named()]
    assert not Optimizer(torch.optim.Adam, lr=0.1).build(elsewhere).param_groups[0]["fused"]


def test_a_state_from_before_a_fused_step_goes_on_without_it():
    theirs, mine = named(), named()
    plain = Optimizer(torch.optim.Adam, lr=0.1, fused=False).build(theirs)
    steps(plain, theirs, 3)
    fused = Optimizer(torch.optim.Adam, lr=0.1).build(mine)
    for (_, here), (_, there) in zip(mine, theirs, strict=True):
        here.data.copy_(there.data)
    fused.load_state_dict(copy.deepcopy(plain.state_dict()))
    for got, wanted in zip(steps(fused, mine, 4), steps(plain, theirs, 4), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (lambda named: by_dimension(named)[:1], r"leave out 1 of 2 parameters, 'net\.norm\.bias' first"),
        (lambda named: [*by_dimension(named), *by_dimension(named)], "more than one parameter group"),
        (lambda named: [each for _, each in named], "its groups are dicts with 'params'"),
        (lambda named: None, "its groups are dicts with 'params'"),
    ],
)
def test_groups_that_do_not_hold_each_parameter_once_are_refused(groups, said):
    with pytest.raises(RecipeError, match=rf"Optimizer\(SGD, lr=0\.1, groups=<lambda>\) cannot be made: .*{said}"):
        Optimizer(torch.optim.SGD, lr=0.1, groups=groups).build(named())


def test_groups_that_are_no_function_are_refused():
    with pytest.raises(RecipeError, match="groups is a function of the named parameters"):
        Optimizer(torch.optim.SGD, lr=0.1, groups=[{"params": []}])


@pytest.mark.parametrize("option", [{"layer_decay": 0.7}, {"param_group_fn": list}])
def test_what_timm_reads_off_a_whole_model_is_refused(option):
    with pytest.raises(RecipeError, match=f"timm's {next(iter(option))} needs a whole model.*groups="):
        Optimizer("adamw", lr=0.1, **option)


@pytest.mark.parametrize("make", [torch.optim.LBFGS, functools.partial(torch.optim.LBFGS, history_size=3)])
def test_an_optimizer_that_computes_the_loss_again_is_refused(make):
    with pytest.raises(RecipeError, match="LBFGS has to compute the loss again"):
        Optimizer(make, lr=1.0)


def test_a_schedule_is_made_of_its_class_and_options():
    schedule = LRSchedule(StepLR, step_size=2, gamma=0.5)
    assert rates(schedule, 4) == [1, 1, 0.5, 0.5]


@pytest.mark.parametrize(("each", "length"), [("epoch", 4), ("update", 8)])
def test_the_length_of_a_schedule_is_that_of_the_stage_in_its_own_unit(each, length):
    made = LRSchedule(CosineAnnealingLR, interval=each).build(sgd(), epochs=4, updates=8)
    assert made.T_max == length
    assert LRSchedule(OneCycleLR, interval=each, max_lr=1.0).build(sgd(), epochs=4, updates=8).total_steps == length


def test_a_length_of_ones_own_is_kept():
    assert LRSchedule(CosineAnnealingLR, T_max=3).build(sgd(), epochs=4, updates=8).T_max == 3
    assert rates(LRSchedule(LinearLR, start_factor=0.5, total_iters=1), 3) == [0.5, 1, 1]


@pytest.mark.parametrize("make", [ConstantLR, LinearLR, PolynomialLR])
def test_a_length_that_torch_has_a_default_for_is_torchs_own(make):
    assert make(sgd()).total_iters == LRSchedule(make).build(sgd(), epochs=40, updates=80).total_iters == 5


def test_a_length_that_a_schedule_of_ones_own_requires_is_that_of_the_stage():
    def ramp(optimizer, total_iters):
        return LinearLR(optimizer, total_iters=total_iters)

    assert LRSchedule(ramp).build(sgd(), epochs=4, updates=8).total_iters == 4


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (StepLR, {"interval": "step", "step_size": 1}, "got 'step'"),
        (StepLR, {"step": 1}, "StepLR has no option 'step'"),
        (ReduceLROnPlateau, {}, "plateau"),
        ("plateau", {}, "plateau"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(make, options, said):
    with pytest.raises(RecipeError, match=said):
        LRSchedule(make, **options)


def test_a_schedule_that_lacks_an_option_is_a_recipe_error():
    with pytest.raises(RecipeError, match=r"LRSchedule\(StepLR, interval='epoch'\) cannot be made: .*step_size"):
        LRSchedule(StepLR).build(sgd(), epochs=1, updates=1)


def test_optimizers_and_schedules_are_made_by_timms_names():
    assert isinstance(Optimizer("sgdw", lr=0.1).build(named()), torch.optim.Optimizer)
    with pytest.raises(RecipeError, match="timm has no optimizer 'lambb'; did you mean 'lamb'"):
        Optimizer("lambb").build(named())
    with pytest.raises(RecipeError, match="nonsense"):
        LRSchedule("nonsense").build(sgd(), epochs=4, updates=8)
    by_epoch = rates(LRSchedule("cosine"), 5)
    assert by_epoch[0] == pytest.approx(1)
    assert by_epoch == sorted(by_epoch, reverse=True)
    assert by_epoch[-1] == pytest.approx(0, abs=1e-6)
    by_update = rates(LRSchedule("cosine", interval="update"), 9)
    assert by_update[4] == pytest.approx(0.5)
    assert by_update[-1] == pytest.approx(0, abs=1e-6)
    first = LRSchedule("cosine")
    before, after = sgd(), sgd()
    stopped, resumed = (first.build(each, epochs=4, updates=8) for each in (before, after))
    stopped.step()
    stopped.step()
    resumed.load_state_dict(stopped.state_dict())
    stopped.step()
    resumed.step()
    assert after.param_groups[0]["lr"] == before.param_groups[0]["lr"]


@pytest.mark.parametrize("decay", [0, 1, 1.5, float("nan"), "a", None])
def test_the_decay_of_an_average_lies_between_zero_and_one(decay):
    with pytest.raises(RecipeError, match="the decay of an average"):
        AverageWeights(decay=decay)


def test_an_average_follows_weights_and_buffers_slowly():
    module = nn.BatchNorm1d(1)
    average = AverageWeights(decay=0.75).build(module)
    average.update_parameters(module)  # the first update copies
    with torch.no_grad():
        module.weight.fill_(5.0)
        module.running_mean.fill_(4.0)
    average.update_parameters(module)
    assert average.module.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 5)
    assert average.module.running_mean.item() == pytest.approx(1)
    assert module.weight.item() == 5


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Optimizer(torch.optim.Adam, lr=0.1), "Optimizer(Adam, lr=0.1)"),
        (Optimizer("lamb", lr=0.1), "Optimizer('lamb', lr=0.1)"),
        (Optimizer("lamb", lr=0.1, groups=by_dimension), "Optimizer('lamb', lr=0.1, groups=by_dimension)"),
        (LRSchedule(StepLR, step_size=2), "LRSchedule(StepLR, interval='epoch', step_size=2)"),
    ],
)
def test_a_training_is_written_down_as_it_was_written(made, text):
    assert repr(made) == text


def test_groups_see_the_names_of_nets_and_of_what_a_loss_trains():
    seen = []

    def groups(named):
        seen.append({name for name, _ in named})
        return [{"params": [each for _, each in named]}]

    teacher, student = tiny_net("teacher", hidden=6, trained=True), tiny_net("student")
    hint = Match(teacher, Hint(), student=Tap(student.module.hidden), target=Tap(teacher.module.hidden))
    run(one_stage(student, plain_goal() + hint, optimizer=Optimizer(torch.optim.Adam, groups=groups)), device="cpu")
    checked, trained = seen
    assert checked == {f"student.{path}" for path, _ in student.module.named_parameters()}
    assert checked < trained
    assert all(name.startswith("losses.") for name in trained - checked)
