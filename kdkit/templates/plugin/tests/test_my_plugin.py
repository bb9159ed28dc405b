"""Tests that what the plugin registers fulfils kdkit's contracts, and of a run that uses all of it."""

from pathlib import Path
from typing import Any

import kdkit
import numpy as np
import pytest
import torch
from kdkit import DataError, Net, Predictions, Recipe, RecipeError, Training, Truth
from kdkit.testing import check_loss, check_metric, check_schedule
from torch import nn

from my_plugin.callbacks import CsvLog
from my_plugin.datasets import Clusters
from my_plugin.losses import ClippedMSE
from my_plugin.metrics import BalancedAccuracy
from my_plugin.schedules import Pretrained


def make_schedule(epochs: int = 1) -> Pretrained:
    """Return the schedule with small networks."""
    teacher = Net("teacher", nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 3)))
    student = Net("student", nn.Linear(2, 3))
    training = Training(epochs=epochs, batch_size=16, optimizer=kdkit.Optimizer(torch.optim.Adam, lr=0.02))
    return Pretrained(teacher, student, Truth(nn.CrossEntropyLoss()), ClippedMSE(), training)


@pytest.mark.parametrize(
    ("kind", "name", "factory"),
    [
        ("losses", "my_plugin_loss", ClippedMSE),
        ("schedules", "my_plugin_schedule", Pretrained),
        ("metrics", "my_plugin_metric", BalancedAccuracy),
        ("datasets", "my_plugin_data", Clusters),
    ],
)
def test_kdkit_finds_what_the_plugin_registers(kind: str, name: str, factory: Any) -> None:
    assert kdkit.registry(kind)[name] is factory
    assert kdkit.registry(kind).plugin(name) == "my_plugin"


def test_the_loss_keeps_its_contract() -> None:
    check_loss(ClippedMSE, least_when_equal=False)  # logits beyond the limit cost something even if they are equal


def test_the_loss_is_the_squared_error_to_the_clipped_target() -> None:
    student, target = torch.tensor([[0.0, 1.0]]), torch.tensor([[10.0, 1.0]])
    assert ClippedMSE(limit=2.0)(student, target).item() == pytest.approx((2.0**2 + 0.0) / 2)


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_wrong_limit_is_refused(limit: float) -> None:
    with pytest.raises(RecipeError, match="limit must be above 0"):
        ClippedMSE(limit=limit)


def test_the_schedule_keeps_its_contract() -> None:
    check_schedule(make_schedule)


def test_the_metric_keeps_its_contract() -> None:
    check_metric(BalancedAccuracy())


def test_the_metric_is_the_mean_of_the_recalls() -> None:
    outputs = np.eye(3)[[0, 0, 1, 1]]  # the predicted classes
    test = Predictions(labels=np.array([0, 0, 0, 1]), outputs=outputs, classes=("top", "left", "right"))
    result = BalancedAccuracy().compute(test)
    assert result.value == pytest.approx((2 / 3 + 1) / 2)
    assert result.by_class == pytest.approx({"top": 2 / 3, "left": 1.0})


def test_several_labels_of_a_sample_are_refused() -> None:
    with pytest.raises(DataError, match="balanced accuracy takes one class per sample"):
        BalancedAccuracy().compute(Predictions(labels=np.eye(3), outputs=np.eye(3), classes=("top", "left", "right")))


def test_the_same_seed_gives_the_same_points() -> None:
    fingerprints = [Clusters(9, seed=seed).fingerprint for seed in (1, 1, 2)]
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0] != fingerprints[2]


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(RecipeError, match="count must be at least 3"):
        Clusters(2)


def test_a_student_learns_and_every_epoch_is_logged(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv")

    def run(*, resume: bool = False) -> kdkit.Result:
        recipe = Recipe(data=Clusters(), schedule=make_schedule(epochs=5), metrics=(BalancedAccuracy(),))
        return kdkit.run(recipe, out=tmp_path / "run", resume=resume, callbacks=[log], device="cpu", seed=0)

    assert run().metrics["student"]["balanced_accuracy"].value > 0.8
    lines = log.path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert {line.split(",")[0] for line in lines[1:]} == {"teacher", "imitation", "finetuning"}
    run(resume=True)  # nothing is left to train
    assert log.path.read_text().splitlines()[: len(lines)] == lines
