"""Learning rate schedules and optimizers of torch and timm in whole runs, and those that are refused."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.data import TensorDataset

import kdkit
from kdkit import KdkitError, LRSchedule, Net, Optimizer, Recipe, Sequential, Stage, TorchData, Truth
from kdkit.errors import CheckError, RecipeError
from kdkit.metrics import MSE, Accuracy
from tests.helpers.callbacks import KillAfterEpoch, Recorder, kill_run
from tests.helpers.stages import Small, assert_same_results, data, one_stage, same, three, training, truth


def learning_rates(recorder: Recorder) -> list[float]:
    """Return the learning rate after each epoch."""
    return [epoch.learning_rate for epoch in recorder.epochs]


def test_a_learning_rate_by_epoch_changes_after_epochs():
    recorder = Recorder()
    schedule = LRSchedule(MultiStepLR, milestones=[2, 3], gamma=0.1)
    kdkit.run(one_stage(epochs=4, lr_schedule=schedule), device="cpu", callbacks=[recorder])
    assert learning_rates(recorder) == pytest.approx([0.1, 0.01, 0.001, 0.001])


def test_a_learning_rate_by_update_changes_after_updates():
    rates = []

    class Recording(SGD):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    one_cycle = LRSchedule(OneCycleLR, interval="update", max_lr=0.5)
    recipe = one_stage(epochs=3, lr_schedule=one_cycle, optimizer=Optimizer(Recording, lr=0.1, momentum=0.9))
    kdkit.run(recipe, device="cpu")
    # The same schedule by hand, on a module that is not trained: 3 epochs of 4 updates.
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=0.1, momentum=0.9)
    schedule = OneCycleLR(optimizer, max_lr=0.5, total_steps=12)
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[1:] == pytest.approx(expected)  # the first step is the one that the check tries


def warmup_and_cosine(optimizer):
    """The schedule that the LRSchedule of a SequentialLR below builds for 6 epochs, as a function of the optimizer."""
    parts = [LinearLR(optimizer, start_factor=0.1, total_iters=2), CosineAnnealingLR(optimizer, T_max=4)]
    return SequentialLR(optimizer, parts, milestones=[2])


WARMUP, COSINE = LRSchedule(LinearLR, start_factor=0.1, total_iters=2), LRSchedule(CosineAnnealingLR)


SCHEDULES = {
    "restarts": (
        LRSchedule(CosineAnnealingWarmRestarts, T_0=2),
        lambda optimizer: CosineAnnealingWarmRestarts(optimizer, T_0=2),
    ),
    "cyclic": (
        LRSchedule(CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=2),
        lambda optimizer: CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=2),
    ),
    "one cycle": (
        LRSchedule(OneCycleLR, max_lr=0.2),
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.2, total_steps=6),
    ),
    "sequence": (LRSchedule(SequentialLR, schedulers=[WARMUP, COSINE], milestones=[2]), warmup_and_cosine),
    "sequence of a function": (LRSchedule(warmup_and_cosine), warmup_and_cosine),
    "chain": (
        LRSchedule(ChainedScheduler, schedulers=[WARMUP, LRSchedule(ExponentialLR, gamma=0.5)]),
        lambda optimizer: ChainedScheduler(
            [LinearLR(optimizer, start_factor=0.1, total_iters=2), ExponentialLR(optimizer, gamma=0.5)]
        ),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_of_torch_give_their_rates_also_in_a_resumed_run(name, tmp_path):
    schedule, by_hand = SCHEDULES[name]
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=0.1, momentum=0.9)
    scheduler, expected = by_hand(optimizer), []
    for _ in range(6):
        optimizer.step()
        scheduler.step()
        expected.append(optimizer.param_groups[0]["lr"])
    whole, resumed = Recorder(), Recorder()
    recipe = lambda: one_stage(epochs=6, lr_schedule=schedule)  # noqa: E731
    first = kdkit.run(recipe, device="cpu", callbacks=[whole])
    assert learning_rates(whole) == pytest.approx(expected)
    kill_run(recipe, tmp_path / "run", KillAfterEpoch(2), device="cpu")
    again = kdkit.run(recipe, out=tmp_path / "run", device="cpu", callbacks=[resumed], resume=True)
    assert learning_rates(resumed) == pytest.approx(expected[2:])
    assert_same_results(first, again)


@pytest.mark.parametrize("metric", [Accuracy(), MSE()], ids=["higher is better", "lower is better"])
def test_a_plateau_schedule_follows_the_monitored_metric_also_in_a_resumed_run(metric, tmp_path):
    plateau = {"patience": 0, "factor": 0.5, "threshold": 0.02}
    schedule = LRSchedule(ReduceLROnPlateau, **plateau)

    def recipe():
        if isinstance(metric, Accuracy):
            return one_stage(epochs=8, lr_schedule=schedule, monitor="accuracy")
        inputs = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
        numbers = TorchData(*[TensorDataset(inputs, inputs[:, :1])] * 2, task="regression")
        options = {"splits": numbers, "metrics": (metric,), "epochs": 8, "lr_schedule": schedule}
        return one_stage(Net("student", nn.Linear(6, 1)), Truth(nn.MSELoss()), **options)

    whole, resumed = Recorder(), Recorder()
    kdkit.run(recipe, device="cpu", callbacks=[whole])
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    by_hand = ReduceLROnPlateau(optimizer, mode="max" if isinstance(metric, Accuracy) else "min", **plateau)
    expected = []
    for epoch in whole.epochs:
        by_hand.step(epoch.monitor_value)
        expected.append(optimizer.param_groups[0]["lr"])
    assert learning_rates(whole) == pytest.approx(expected)
    assert expected[0] > expected[-1]
    kill_run(recipe, tmp_path / "run", KillAfterEpoch(3), device="cpu")
    kdkit.run(recipe, out=tmp_path / "run", device="cpu", callbacks=[resumed], resume=True)
    assert learning_rates(resumed) == pytest.approx(expected[3:])


@pytest.mark.parametrize("interval", ["epoch", "update"])
def test_the_cosine_schedule_of_timm_ends_near_zero(interval):
    recorder = Recorder()
    schedule = LRSchedule("cosine", interval=interval)
    kdkit.run(one_stage(epochs=4, lr_schedule=schedule), device="cpu", callbacks=[recorder])
    rates = learning_rates(recorder)
    # Half a cosine from the learning rate of 0.1; timm steps after an epoch, so that the first rate is that of epoch 1.
    expected = [0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (1, 2, 3)]
    assert rates[:3] == pytest.approx(expected, abs=1e-6)
    assert rates[3] < 0.01


@pytest.mark.parametrize(
    "schedule",
    [
        ("plateau", {}),
        ("cosinee", {}),
        (MultiStepLR, {}),
        (OneCycleLR, {}),
        (OneCycleLR, {"max_lr": 0.1, "total_steps": 1}),
        (SequentialLR, {"schedulers": [LRSchedule(MultiStepLR, milestones=[1])], "milestones": [1]}),
    ],
    ids=["timm plateau", "misspelt", "incomplete", "incomplete too", "too short", "milestones"],
)
def test_a_schedule_that_cannot_work_is_refused_before_the_first_step(schedule):
    recorder = Recorder()
    make, options = schedule
    with pytest.raises(KdkitError, match=r"plateau|cosinee|MultiStepLR|OneCycleLR|SequentialLR"):
        kdkit.run(
            lambda: three(Sequential, training=training(lr_schedule=LRSchedule(make, **options))),
            device="cpu",
            callbacks=[recorder],
        )
    assert not recorder.runs


def test_optimizers_of_timm_are_named_by_a_string():
    start = Small(4)
    net = Net("student", copy.deepcopy(start))
    kdkit.run(one_stage(net, optimizer=Optimizer("lamb", lr=0.01)), device="cpu")
    assert not same(net.module.state_dict(), start.state_dict())
    with pytest.raises(KdkitError, match=r"'lambb'.*did you mean"):
        kdkit.run(one_stage(optimizer=Optimizer("lambb", lr=0.01)), device="cpu")


def test_options_of_the_last_stage_are_refused_before_the_first_one_runs():
    recorder = Recorder()
    first, last = Net("one", Small(4)), Net("two", Small(4))
    wrong = training(optimizer=Optimizer(SGD, lr=-1.0))
    recipe = Recipe(data=data(), schedule=[Stage({first: truth()}, training()), Stage({last: truth()}, wrong)])
    with pytest.raises(CheckError, match=r"stage 'two'.*learning rate"):
        kdkit.run(recipe, device="cpu", callbacks=[recorder])
    assert not recorder.runs


class Stateless:
    """A schedule that does nothing."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        pass


class Falling(LRScheduler):
    """A schedule that holds a function, which is then part of its state."""

    def __init__(self, optimizer: Any) -> None:
        self.factor = lambda epoch: 0.9**epoch
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Stateless, r"a Stateless, needs the methods state_dict\(\) and load_state_dict"),
        (Falling, r"tensors and plain values only, but lr_scheduler\.factor is a builtins\.function"),
    ],
)
def test_a_schedule_whose_state_cannot_be_stored_is_refused_before_a_run_with_a_folder(schedule, message, tmp_path):
    def recipe() -> Recipe:
        return one_stage(epochs=1, lr_schedule=LRSchedule(schedule))

    with pytest.raises(RecipeError, match=f"stage 'student': .*{message}.* or run without a folder"):
        kdkit.run(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    kdkit.run(recipe)
