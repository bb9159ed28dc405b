"""The epoch that a stage keeps, and when it ends for lack of a better one; the average of the weights."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import kdkit
from kdkit import AverageWeights, MetricResult, Net, Optimizer, Recipe, TorchData, hookimpl
from tests.helpers.callbacks import KillAfterEpoch, kill_run
from tests.helpers.stages import Small, copied, one_stage, same, samples


class Listed:
    """A metric that returns the values of a list, one in each call."""

    def __init__(self, *values: float) -> None:
        self.values: Iterator[float] = iter(values)

    name = "listed"

    def fit(self, validation: Any) -> "Listed":
        return self

    def compute(self, test: Any) -> MetricResult:
        return MetricResult(value=next(self.values, 0.0))


CHECK = 0.0  # the value for the check, which computes each metric once before a net is trained


class Snapshots:
    """Records the weights of a net after each epoch."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.seen: list[dict[str, Tensor]] = []

    @hookimpl
    def epoch_ended(self, event: Any) -> None:
        self.seen.append(copied(self.module))


@pytest.mark.parametrize(("keep", "kept"), [("best", 1), ("last", 3)])
def test_the_best_or_the_last_epoch_is_kept(keep, kept):
    net = Net("student", Small(4))
    snapshots = Snapshots(net.module)
    # Two epochs share the best value: the first one of them is kept.
    recipe = one_stage(net, epochs=4, keep=keep, metrics=(Listed(CHECK, 0.1, 0.9, 0.2, 0.9),))
    result = kdkit.run(recipe, device="cpu", callbacks=[snapshots])
    assert same(net.module.state_dict(), snapshots.seen[kept])
    assert sum(same(net.module.state_dict(), weights) for weights in snapshots.seen) == 1
    marks = [epoch["best"] for epoch in result.history["student"]]
    assert marks == ([True, True, False, False] if keep == "best" else [True] * 4)


def test_the_metric_named_by_monitor_decides():
    net = Net("student", Small(4))
    snapshots = Snapshots(net.module)
    recipe = one_stage(
        net, epochs=3, monitor="listed", metrics=(kdkit.metrics.Accuracy(), Listed(CHECK, 0.1, 0.2, 0.0))
    )
    kdkit.run(recipe, device="cpu", callbacks=[snapshots])
    assert same(net.module.state_dict(), snapshots.seen[1])


def test_an_epoch_whose_metric_is_nan_is_replaced_by_one_with_a_number():
    net = Net("student", Small(4))
    snapshots = Snapshots(net.module)
    recipe = one_stage(net, epochs=3, metrics=(Listed(CHECK, math.nan, 0.5, math.nan),))
    kdkit.run(recipe, device="cpu", callbacks=[snapshots])
    assert same(net.module.state_dict(), snapshots.seen[1])


def test_the_last_epoch_is_kept_with_a_warning_if_the_metric_was_never_defined(tmp_path):
    def run(*epochs: int) -> tuple[Any, Snapshots]:
        net = Net("student", Small(4))
        snapshots = Snapshots(net.module)
        recipe = one_stage(net, epochs=len(epochs), metrics=(Listed(CHECK, *epochs),))
        result = kdkit.run(recipe, device="cpu", callbacks=[snapshots], out=tmp_path / f"{len(epochs)}")
        assert same(net.module.state_dict(), snapshots.seen[-1])
        return result, snapshots

    with pytest.warns(UserWarning, match="'listed' was undefined on the validation split in every epoch, .* last one"):
        result, _ = run(math.nan, math.nan, math.nan)
    assert [epoch["best"] for epoch in result.history["student"]] == [True, True, True]
    run(math.nan, math.nan, 0.5, 0.6)  # without a warning, which would be an error here


def test_the_last_epoch_is_kept_if_all_have_the_same_value(tmp_path):
    net = Net("student", Small(4))
    snapshots = Snapshots(net.module)
    recipe = one_stage(net, epochs=3, metrics=(Listed(CHECK, 0.5, 0.5, 0.5),))
    result = kdkit.run(recipe, device="cpu", callbacks=[snapshots], out=tmp_path / "run")
    assert same(net.module.state_dict(), snapshots.seen[2])
    assert [epoch["best"] for epoch in result.history["student"]] == [True, True, True]


def test_a_value_that_does_not_change_is_no_better_one(tmp_path):
    def recipe(*values):
        return one_stage(epochs=9, patience=2, metrics=(Listed(CHECK, *values),))

    kill_run(recipe(0.5, 0.5), tmp_path / "run", KillAfterEpoch(1), device="cpu")
    history = kdkit.run(recipe(0.5, 0.5), device="cpu", out=tmp_path / "run", resume=True).history["student"]
    assert [epoch["best"] for epoch in history] == [True, True, True]


def test_patience_counts_from_the_first_epoch_with_the_best_value():
    recipe = one_stage(epochs=9, patience=3, metrics=(Listed(CHECK, 0.5, 0.5, 0.5, 0.4),))
    assert len(kdkit.run(recipe, device="cpu").history["student"]) == 4


def test_the_average_of_the_weights_is_validated_and_kept():
    start, outputs = Small(4, dropout=0.0), []

    class Recording(Listed):
        def compute(self, test: Any) -> MetricResult:
            outputs.append(test.outputs.copy())
            return MetricResult(value=float(len(outputs)))  # so that the last epoch is the best

    def recipe(average: AverageWeights | None) -> Recipe:
        return one_stage(Net("student", copy.deepcopy(start)), epochs=2, ema=average, metrics=(Recording(),))

    plain = kdkit.run(recipe(None), device="cpu").student.module
    outputs.clear()
    averaged = kdkit.run(recipe(AverageWeights(decay=0.9)), device="cpu").student.module
    assert not torch.allclose(plain.head.weight, averaged.head.weight, atol=1e-4)
    averaged.eval()
    with torch.no_grad():
        kept = averaged(samples(24, 1).tensors[0]).numpy()
    _checked, first, second = outputs[:3]
    # Rounding depends on the size of a batch, with some kernels.
    np.testing.assert_allclose(second, kept, rtol=1e-5, atol=1e-7)
    assert not np.allclose(first, kept, rtol=1e-3)


def test_the_average_equals_that_of_torch():
    start, train = Small(4, dropout=0.0), samples(32)
    net = Net("student", copy.deepcopy(start))
    splits = TorchData(train, samples(24, 1), classes=("a", "b", "c"))
    options = {"epochs": 3, "batch_size": 32, "optimizer": Optimizer(SGD, lr=0.1), "keep": "last"}
    kdkit.run(one_stage(net, splits=splits, ema=AverageWeights(decay=0.5), **options), device="cpu")
    module, expected = copy.deepcopy(start), None
    optimizer = SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(train.tensors[0]), train.tensors[1]).backward()
        optimizer.step()
        weight = module.head.weight.detach().clone()
        # torch's AveragedModel copies the first update instead of averaging it with the initial weights.
        expected = weight if expected is None else 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(net.module.head.weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_stage_ends_after_so_many_epochs_without_a_better_one(tmp_path):
    def recipe():
        return one_stage(epochs=9, patience=2, metrics=(Listed(CHECK, 0.1, 0.9, 0.2, 0.3, 1.0),))

    history = kdkit.run(recipe(), device="cpu", out=tmp_path / "run").history["student"]
    assert [epoch["best"] for epoch in history] == [True, True, False, False]
    again = kdkit.run(recipe(), device="cpu", out=tmp_path / "run", resume=True).history["student"]
    assert again == history


def test_a_resumed_stage_counts_the_epochs_without_a_better_one_before_it(tmp_path):
    def recipe(*values):
        return one_stage(epochs=9, patience=3, metrics=(Listed(CHECK, *values),))

    kill_run(recipe(0.9, 0.1, 0.2, 0.3), tmp_path / "run", KillAfterEpoch(3), device="cpu")
    history = kdkit.run(recipe(0.3), device="cpu", out=tmp_path / "run", resume=True).history["student"]
    assert [epoch["best"] for epoch in history] == [True, False, False, False]
