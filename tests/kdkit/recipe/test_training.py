"""Training options: their validation, and how optimizers, LR schedules and averages of weights are created."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdkit import AverageWeights, LRSchedule, Match, Net, Optimizer, RecipeError, Tap, Training, run
from kdkit.losses import Hint
from tests.helpers.tiny import one_stage, plain_goal, tiny_net


def named_parameters():
    return [("net.weight", nn.Parameter(torch.ones(2, 2))), ("net.norm.bias", nn.Parameter(torch.ones(2)))]


def sgd(lr=1.0):
    return torch.optim.SGD([parameter for _, parameter in named_parameters()], lr=lr)


def learning_rates(schedule, steps):
    """Return the learning rate at each of the first steps of a stage of 4 epochs and 8 updates."""
    optimizer = sgd()
    scheduler = schedule.build(optimizer, epochs=4, updates=8)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1; got 0"),
        ({"epochs": 1.5}, r"epochs must be an integer of at least 1; got 1\.5"),
        # A bool is an int in Python.
        ({"epochs": True}, "epochs must be an integer of at least 1; got True"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        ({"accumulate_steps": 0}, "accumulate_steps must be an integer of at least 1; got 0"),
        ({"workers": -1}, "workers must be an integer of at least 0 or None; got -1"),
        ({"max_grad_norm": 0}, "max_grad_norm must be a finite number above 0 or None; got 0"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm must be a finite number above 0 or None; got nan"),
        ({"max_grad_norm": "1"}, "max_grad_norm must be a finite number above 0 or None; got '1'"),
        ({"max_grad_norm": True}, "max_grad_norm must be a finite number above 0 or None; got True"),
        ({"monitor": 3}, "monitor must be the name of a metric, such as 'accuracy', or None; got 3"),
        ({"keep": "first"}, "keep must be 'best' or 'last' or None; got 'first'"),
        (
            {"optimizer": torch.optim.Adam},
            r"optimizer must be a kdkit.Optimizer, such as Optimizer\(torch\.optim\.Adam, lr=\.\.\.\)",
        ),
        ({"lr_schedule": 0.1}, r"lr_schedule must be LRSchedule\(torch_class, \.\.\.\) or None; got 0\.1"),
        ({"ema": 0.999}, r"ema must be AverageWeights\(decay=\.\.\.\) or None; got 0\.999"),
    ],
)
def test_invalid_training_options_are_refused(option, message):
    with pytest.raises(RecipeError, match=message):
        Training(**{"epochs": 1, **option})


def test_the_default_optimizer_is_created_for_each_training():
    # A shared default would be a mutable default argument.
    assert Training(epochs=1).optimizer is not Training(epochs=1).optimizer


# Optimizers


def test_an_optimizer_is_created_from_its_class_and_options():
    optimizer = Optimizer(torch.optim.AdamW, lr=0.02, weight_decay=0.3).build(named_parameters())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_every_build_creates_a_new_optimizer():
    optimizer = Optimizer(torch.optim.SGD, lr=0.1)
    assert optimizer.build(named_parameters()) is not optimizer.build(named_parameters())


def test_an_unknown_option_of_an_optimizer_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match="Adam has no option 'weight_decy'; did you mean 'weight_decay'"):
        Optimizer(torch.optim.Adam, weight_decy=0.1)
    with pytest.raises(RecipeError, match=r"functools\.partial.* has no option 'weight_decy'"):
        Optimizer(functools.partial(torch.optim.Adam, lr=0.1), weight_decy=0.1)


def test_options_that_torch_refuses_are_a_recipe_error():
    with pytest.raises(RecipeError, match=r"Optimizer\(SGD, lr=-1\) cannot be created: Invalid learning rate"):
        Optimizer(torch.optim.SGD, lr=-1).build(named_parameters())


def test_an_optimizer_may_be_a_function_of_the_parameters():
    sgd_with_momentum = functools.partial(torch.optim.SGD, momentum=0.5)
    optimizer = Optimizer(sgd_with_momentum, lr=0.1)
    assert optimizer.build(named_parameters()).param_groups[0]["momentum"] == 0.5
    assert "lr=0.1" in repr(optimizer)  # a partial has no __name__, so its own repr is used


def by_dimension(named):
    """Return two groups: matrices, in a generator as torch allows, and biases without weight decay."""
    return [
        {"params": (parameter for _, parameter in named if parameter.ndim > 1)},
        {"params": [param for name, param in named if name.endswith("bias")], "weight_decay": 0.0, "lr": 0.5},
    ]


# Once by torch's class and once by timm's name.
@pytest.mark.parametrize("make", [torch.optim.AdamW, "adamw"])
def test_parameter_groups_may_have_different_options(make):
    optimizer = Optimizer(make, lr=0.1, weight_decay=0.3, groups=by_dimension).build(named_parameters())
    matrices, vectors = optimizer.param_groups
    assert (matrices["lr"], matrices["weight_decay"], matrices["params"][0].ndim) == (0.1, 0.3, 2)
    assert (vectors["lr"], vectors["weight_decay"], vectors["params"][0].ndim) == (0.5, 0.0, 1)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda named: by_dimension(named)[:1], r"leave out 1 of 2 parameters, 'net\.norm\.bias' first"),
        # torch itself refuses a parameter in two groups.
        (lambda named: [*by_dimension(named), *by_dimension(named)], "more than one parameter group"),
        (lambda named: [parameter for _, parameter in named], "its groups must be dicts with 'params'"),
        (lambda named: None, "its groups must be dicts with 'params'"),
        (
            lambda named: [{"params": [parameter for _, parameter in named], "name": "all", "weight_deacy": 0.0}],
            "its groups have an option 'weight_deacy'; did you mean 'weight_decay'",
        ),
    ],
)
def test_groups_must_contain_every_parameter_once(groups, message):
    error = rf"Optimizer\(SGD, lr=0\.1, groups=<lambda>\) cannot be created: .*{message}"
    with pytest.raises(RecipeError, match=error):
        Optimizer(torch.optim.SGD, lr=0.1, groups=groups).build(named_parameters())


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (None, [0.5, 1.0]),
        (LRSchedule(CosineAnnealingLR), [0.25, 0.5]),
        (LRSchedule("cosine"), [0.25, 0.5]),
        (LRSchedule("cosine", warmup_epochs=4, warmup_lr=0.0), [0.25, 0.5]),  # which is scaled too, as by timm
    ],
)
def test_the_rate_of_a_group_is_multiplied_by_its_scale_with_every_schedule(schedule, rates):
    def groups(named):
        return [
            {"params": [parameter], "lr_scale": scale} for (_, parameter), scale in zip(named, (0.5, 1), strict=True)
        ]

    optimizer = Optimizer(torch.optim.SGD, lr=1.0, groups=groups).build(named_parameters())
    scheduler = schedule and schedule.build(optimizer, epochs=4, updates=8)
    for _ in range(2 if scheduler else 0):  # half of the epochs
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)


def test_one_largest_rate_for_groups_of_different_rates_is_refused():
    optimizer = Optimizer(torch.optim.SGD, lr=1.0, groups=by_dimension).build(named_parameters())
    with pytest.raises(RecipeError, match=r"pass max_lr=\[...\] with a rate for each group"):
        LRSchedule(OneCycleLR, max_lr=1.0).build(optimizer, epochs=4, updates=8)
    LRSchedule(OneCycleLR, max_lr=[1.0, 0.5]).build(optimizer, epochs=4, updates=8)


def test_groups_must_be_a_function():
    with pytest.raises(RecipeError, match="groups must be a function of the named parameters, or None"):
        Optimizer(torch.optim.SGD, lr=0.1, groups=[{"params": []}])


def test_groups_get_the_names_of_nets_and_of_parameters_of_losses():
    names_per_call = []

    def groups(named):
        names_per_call.append({name for name, _ in named})
        return [{"params": [parameter for _, parameter in named]}]

    teacher, student = tiny_net("teacher", hidden=6, trained=True), tiny_net("student")
    hint = Match(teacher, Hint(), student=Tap(student.module.hidden), target=Tap(teacher.module.hidden))
    run(one_stage(student, plain_goal() + hint, optimizer=Optimizer(torch.optim.Adam, groups=groups)), device="cpu")
    # The check creates the optimizer before the projector of the loss is built, and after it to try a step and to look
    # for empty groups; so does training.
    checked, *tried, trained = names_per_call
    assert tried == [trained, trained]
    assert checked == {f"student.{path}" for path, _ in student.module.named_parameters()}
    assert checked < trained
    assert all(name.startswith("losses.") for name in trained - checked)


@pytest.mark.parametrize("option", [{"layer_decay": 0.7}, {"param_group_fn": list}])
def test_options_of_timm_that_need_a_whole_model_are_refused(option):
    with pytest.raises(RecipeError, match=f"timm's {next(iter(option))} needs a whole model.*groups="):
        Optimizer("adamw", lr=0.1, **option)


class ScheduleFree(torch.optim.SGD):
    def train(self):
        """Choose the weights for training."""

    def eval(self):
        """Choose the weights for a validation."""


def test_an_optimizer_with_modes_is_refused():
    with pytest.raises(RecipeError, match=r"modes train\(\) and eval\(\), .* use another optimizer with an LRSchedule"):
        Optimizer(ScheduleFree, lr=0.1).build(nn.Linear(2, 2).named_parameters())


def test_the_muon_of_torch_is_refused_with_that_of_timm():
    named = [*nn.Linear(2, 2).named_parameters()]
    with pytest.raises(RecipeError, match=r"only supports 2D .*; timm's Optimizer\('muon'\) updates the others"):
        Optimizer(torch.optim.Muon, lr=0.1).build(named)
    Optimizer("muon", lr=0.1).build(named)


@pytest.mark.parametrize("make", [torch.optim.LBFGS, functools.partial(torch.optim.LBFGS, history_size=3)])
def test_an_optimizer_that_needs_a_closure_is_refused(make):
    with pytest.raises(RecipeError, match=r"LBFGS recomputes the loss within a step \(a closure\)"):
        Optimizer(make, lr=1.0)


# The fused step of Adam


def step_times(optimizer, named, count):
    """Step `count` times with gradients that depend on the step, and return the parameters."""
    for step in range(count):
        for _, parameter in named:
            parameter.grad = torch.full_like(parameter, 0.1 * step - 0.3)
        optimizer.step()
    return [parameter.detach() for _, parameter in named]


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("groups", [None, by_dimension])
def test_the_fused_step_on_a_cpu_has_the_result_of_the_plain_one(make, groups):
    fused_parameters, plain_parameters = named_parameters(), named_parameters()
    fused = Optimizer(make, lr=0.1, weight_decay=0.3, groups=groups).build(fused_parameters)
    plain = Optimizer(make, lr=0.1, weight_decay=0.3, groups=groups, fused=False).build(plain_parameters)
    # Without this, the comparison below would hold for two plain steps too.
    assert all(group["fused"] for group in fused.param_groups)
    assert not any(group["fused"] for group in plain.param_groups)
    results = zip(step_times(fused, fused_parameters, 9), step_times(plain, plain_parameters, 9), strict=True)
    for actual, expected in results:
        # The fused kernel may round differently.
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.NAdam, {}),
        (torch.optim.Adam, {"foreach": True}),
        (torch.optim.Adam, {"differentiable": True}),
        (
            torch.optim.AdamW,
            {"groups": lambda named: [{"params": [parameter for _, parameter in named], "foreach": True}]},
        ),
        (functools.partial(torch.optim.Adam, amsgrad=True), {}),
    ],
)
def test_the_fused_step_is_not_chosen_for_other_optimizers_or_against_an_option(make, options):
    optimizer = Optimizer(make, lr=0.1, **options).build(named_parameters())
    assert not any(group.get("fused") for group in optimizer.param_groups)


def test_the_fused_step_is_not_chosen_on_another_device_than_a_cpu():
    named = [(name, nn.Parameter(parameter.detach().to("meta"))) for name, parameter in named_parameters()]
    assert not Optimizer(torch.optim.Adam, lr=0.1).build(named).param_groups[0]["fused"]


def test_a_state_of_a_plain_step_is_resumed_with_a_plain_step():
    plain_parameters, fused_parameters = named_parameters(), named_parameters()
    plain = Optimizer(torch.optim.Adam, lr=0.1, fused=False).build(plain_parameters)
    step_times(plain, plain_parameters, 3)
    fused = Optimizer(torch.optim.Adam, lr=0.1).build(fused_parameters)
    for (_, copied), (_, original) in zip(fused_parameters, plain_parameters, strict=True):
        copied.data.copy_(original.data)
    fused.load_state_dict(copy.deepcopy(plain.state_dict()))  # the groups in the state include fused=False
    results = zip(step_times(fused, fused_parameters, 4), step_times(plain, plain_parameters, 4), strict=True)
    for actual, expected in results:
        # Equal to the bit: the resumed optimizer uses the plain step, as its state was computed with it.
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# LR schedules


def test_a_schedule_is_created_from_its_class_and_options():
    schedule = LRSchedule(StepLR, step_size=2, gamma=0.5)
    assert learning_rates(schedule, 4) == [1, 1, 0.5, 0.5]  # exact: halving does not round


@pytest.mark.parametrize(("interval", "length"), [("epoch", 4), ("update", 8)])
def test_the_default_length_is_that_of_the_stage_in_the_unit_of_the_interval(interval, length):
    cosine = LRSchedule(CosineAnnealingLR, interval=interval).build(sgd(), epochs=4, updates=8)
    assert cosine.T_max == length
    one_cycle = LRSchedule(OneCycleLR, interval=interval, max_lr=1.0).build(sgd(), epochs=4, updates=8)
    assert one_cycle.total_steps == length


def test_a_length_that_is_passed_is_used():
    assert LRSchedule(CosineAnnealingLR, T_max=3).build(sgd(), epochs=4, updates=8).T_max == 3
    assert learning_rates(LRSchedule(LinearLR, start_factor=0.5, total_iters=1), 3) == [0.5, 1, 1]


@pytest.mark.parametrize("make", [ConstantLR, LinearLR])
def test_a_warmup_takes_the_default_length_of_torch(make):
    assert make(sgd()).total_iters == LRSchedule(make).build(sgd(), epochs=40, updates=80).total_iters == 5


@pytest.mark.parametrize(
    ("make", "options"), [(PolynomialLR, {"power": 0.9}), (LinearLR, {"start_factor": 1.0, "end_factor": 0.0})]
)
def test_a_rate_that_falls_to_zero_falls_during_the_whole_stage(make, options):
    assert LRSchedule(make, interval="update", **options).build(sgd(), epochs=4, updates=8).total_iters == 8
    parts = [LRSchedule(LinearLR, total_iters=2), LRSchedule(make, **options)]
    rates = learning_rates(LRSchedule(SequentialLR, schedulers=parts, milestones=[2], interval="update"), 9)
    assert rates[7] > rates[8] == 0


def test_a_user_defined_schedule_gets_the_length_that_it_requires():
    def ramp(optimizer, total_iters):
        return LinearLR(optimizer, total_iters=total_iters)

    assert LRSchedule(ramp).build(sgd(), epochs=4, updates=8).total_iters == 4


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (StepLR, {"interval": "step", "step_size": 1}, "must be 'epoch' or 'update'; got 'step'"),
        (StepLR, {"step": 1}, "StepLR has no option 'step'"),
        (functools.partial(StepLR, gamma=0.1), {"step": 1}, r"functools\.partial.* has no option 'step'"),
        (StepLR(sgd(), 1), {}, r"LRSchedule takes a class .*, such as LRSchedule\(StepLR.*; got an instance of StepLR"),
        (None, {}, "LRSchedule takes a class .*; got an instance of NoneType"),
        (
            ReduceLROnPlateau,
            {"interval": "update"},
            "follows a metric after each epoch, so its interval must be 'epoch'",
        ),
        ("plateau", {}, r"timm's plateau schedule cannot be resumed; use torch's: LRSchedule\(ReduceLROnPlateau\)"),
    ],
)
def test_invalid_schedules_are_refused(make, options, message):
    with pytest.raises(RecipeError, match=message):
        LRSchedule(make, **options)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (LRSchedule(SequentialLR, schedulers=[LRSchedule(LinearLR)], milestones=[1]), "1 schedulers need 0 milestones"),
        (
            LRSchedule(SequentialLR, schedulers=[LinearLR(sgd()), LinearLR(sgd())], milestones=[1]),
            r"its schedulers must be LRSchedule\(LinearLR, \.\.\.\) or similar; got a LinearLR",
        ),
        (
            LRSchedule(ChainedScheduler, schedulers=[LRSchedule("cosine")]),
            "a timm schedule cannot be part of another one",
        ),
        (
            LRSchedule(ChainedScheduler, schedulers=[LRSchedule(LinearLR, interval="update")]),
            "pass interval='update' to the whole schedule",
        ),
        (
            LRSchedule(
                SequentialLR,
                schedulers=[LRSchedule(LinearLR), LRSchedule(ChainedScheduler, schedulers=[LRSchedule(LinearLR)])],
                milestones=[1],
            ),
            "torch cannot start a ChainedScheduler at a milestone",
        ),
        (LRSchedule(lambda optimizer: ReduceLROnPlateau(optimizer)), "instead of a function"),
        (LRSchedule(OneCycleLR, max_lr=1.0, total_steps=3), "it ends after 3 steps, but this stage has 4"),
        (LRSchedule(OneCycleLR, max_lr=1.0, total_steps=7, interval="update"), "after 7 steps, but this stage has 8"),
        (LRSchedule(OneCycleLR, max_lr=1.0, epochs=3, steps_per_epoch=1), "after 3 steps, but this stage has 4"),
    ],
)
def test_schedules_that_cannot_be_built_for_a_stage_are_recipe_errors(schedule, message):
    with pytest.raises(RecipeError, match=message):
        schedule.build(sgd(), epochs=4, updates=8)


def test_the_mode_of_a_plateau_schedule_is_that_of_the_metric_unless_it_is_passed():
    assert LRSchedule(ReduceLROnPlateau).for_metric(higher_is_better=True).options["mode"] == "max"
    assert LRSchedule(ReduceLROnPlateau, mode="min").for_metric(higher_is_better=True).options["mode"] == "min"
    step = LRSchedule(StepLR, step_size=2)
    assert step.for_metric(higher_is_better=True) is step


def test_a_schedule_without_a_required_option_is_a_recipe_error():
    with pytest.raises(RecipeError, match=r"LRSchedule\(StepLR, interval='epoch'\) cannot be created: .*step_size"):
        LRSchedule(StepLR).build(sgd(), epochs=1, updates=1)


# Optimizers and schedules of timm


def test_optimizers_and_schedules_of_timm_are_created_by_name():
    assert isinstance(Optimizer("sgdw", lr=0.1).build(named_parameters()), torch.optim.Optimizer)
    with pytest.raises(RecipeError, match="timm has no optimizer 'lambb'; did you mean 'lamb'"):
        Optimizer("lambb").build(named_parameters())
    with pytest.raises(RecipeError, match="nonsense"):
        LRSchedule("nonsense").build(sgd(), epochs=4, updates=8)
    by_epoch = learning_rates(LRSchedule("cosine"), 5)
    assert by_epoch[0] == pytest.approx(1)
    assert by_epoch == sorted(by_epoch, reverse=True)
    assert by_epoch[-1] == pytest.approx(0, abs=1e-6)
    by_update = learning_rates(LRSchedule("cosine", interval="update"), 9)
    assert by_update[4] == pytest.approx(0.5)  # a cosine has its mean at half its length
    assert by_update[-1] == pytest.approx(0, abs=1e-6)


def test_a_schedule_of_timm_can_be_resumed():
    schedule = LRSchedule("cosine")
    optimizer, resumed_optimizer = sgd(), sgd()
    scheduler = schedule.build(optimizer, epochs=4, updates=8)
    resumed = schedule.build(resumed_optimizer, epochs=4, updates=8)
    scheduler.step()
    scheduler.step()
    # timm's schedulers take the number of the step, so the count has to be a part of the state.
    resumed.load_state_dict(scheduler.state_dict())
    scheduler.step()
    resumed.step()
    assert resumed_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


# Averages of weights


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, float("nan"), "a", None])
def test_the_decay_of_an_average_must_be_at_least_zero_and_below_one(decay):
    with pytest.raises(RecipeError, match=f"the decay of an average must be at least 0 and below 1; got {decay!r}"):
        AverageWeights(decay=decay)


def test_an_average_follows_weights_and_buffers():
    module = nn.BatchNorm1d(1)
    average = AverageWeights(decay=0.75).build(Net("student", module))
    average.update(module)  # the first update copies
    with torch.no_grad():
        module.weight.fill_(5.0)
        module.running_mean.fill_(4.0)
    average.update(module)
    assert average.module.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 5)
    assert average.module.running_mean.item() == pytest.approx(1)  # 0.75 * 0 + 0.25 * 4
    assert module.weight.item() == 5


# A resumed run compares the repr of its training


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (Optimizer(torch.optim.Adam, lr=0.1), "Optimizer(Adam, lr=0.1)"),
        (Optimizer("lamb", lr=0.1), "Optimizer('lamb', lr=0.1)"),
        (Optimizer("lamb", lr=0.1, groups=by_dimension), "Optimizer('lamb', lr=0.1, groups=by_dimension)"),
        (LRSchedule(StepLR, step_size=2), "LRSchedule(StepLR, interval='epoch', step_size=2)"),
    ],
)
def test_the_repr_of_an_option_reads_as_the_code_that_creates_it(option, text):
    assert repr(option) == text


def test_an_average_in_half_precision_follows_the_weights_also_when_it_is_resumed():
    net = nn.Linear(2, 1).to(torch.bfloat16)
    net.bias.requires_grad_(False)  # frozen, so that it needs no copy
    averages = [AverageWeights(decay=0.999).build(Net("student", net)) for _ in range(2)]
    weight, average = net.weight.detach(), averages[0]
    expected = weight.fill_(1).double()
    for update in range(2000):
        weight.fill_(1 + update / 2000)
        average.update(net)
        expected = expected.lerp(weight.double(), 0.001) if update else weight.double()
        if update == 1000:
            assert list(average._precise) == ["weight"]
            averages[1].load_state_dict(average.state_dict())
            average = averages[1]
    assert average.module.weight.dtype == torch.bfloat16
    torch.testing.assert_close(average.module.weight.double(), expected, rtol=1e-2, atol=0)


def test_an_average_has_the_bits_of_torchs_own_also_when_it_is_resumed():
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(24, 3))
    average = AverageWeights(decay=0.9).build(Net("student", net))
    expected = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in range(6):
        net(torch.randn(5, 2, 8))  # moves the statistics of the batch norm, and its counter
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        if step == 3:
            saved = average.state_dict()
            average = AverageWeights(decay=0.9).build(Net("student", net))
            average.load_state_dict(saved)
        average.update(net)
        expected.update_parameters(net)
        for key, value in expected.module.state_dict().items():
            if value.is_floating_point():
                assert torch.equal(average.state_dict()["average"][key], value), (step, key)


def test_an_average_has_the_whole_and_infinite_numbers_of_its_net():
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("positions", torch.arange(64))
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("phase", torch.ones(1, dtype=torch.complex64))
            self.register_buffer("masked", torch.full((2, 2), -torch.inf).triu(1))
            self.norm = nn.BatchNorm1d(2)

    net = Indexed()
    average = AverageWeights(decay=0.9).build(Net("student", net))
    for _ in range(5):
        net.norm(torch.randn(4, 2))
        net.phase += 1j
        net.masked[1, 0] += 1
        average.update(net)
    assert torch.equal(average.module.masked[0], torch.tensor([0, -torch.inf]))
    assert 0 < average.module.masked[1, 0] < net.masked[1, 0]
    assert torch.equal(average.module.positions, torch.arange(64))
    assert torch.equal(average.module.mask, net.mask)
    assert average.module.norm.num_batches_tracked == 5
    assert 0 < average.module.phase.imag < net.phase.imag  # averaged, unlike these


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience must be an integer of at least 1 or None; got 0"),
        ({"patience": 2, "keep": "last"}, "patience waits for a better epoch, but keep='last' keeps the last one"),
    ],
)
def test_a_patience_that_has_no_meaning_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        Training(epochs=3, **options)


def test_an_optimizer_of_torch_instead_of_its_class_is_refused():
    with pytest.raises(RecipeError, match=r"Optimizer takes a class, such as .*; got an instance of Adam"):
        Optimizer(torch.optim.Adam(nn.Linear(2, 2).parameters()))


def test_an_optimizer_that_asserts_what_it_needs_is_a_recipe_error():
    def fused(parameters):
        raise AssertionError("CUDA required for APEX optimizers")  # as in timm

    with pytest.raises(RecipeError, match=r"Optimizer\(fused\) cannot be created: CUDA required"):
        Optimizer(fused).build([("weight", nn.Parameter(torch.zeros(1)))])
