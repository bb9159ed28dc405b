"""Scores in whole runs: which epoch they keep, that test labels move nothing, intervals, and tables class by class."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Data, MetricResult, Net, Recipe, Split, Stage, TorchData, Truth
from kdkit.cli.console import metrics_table
from kdkit.metrics import Accuracy, BootstrapInterval, Brier, MacroAUROC, MacroF1
from kdkit.plugins.events import RunEnded
from tests.helpers.stages import Small, samples, training, truth

CLASSES = ("a", "b", "c")


def alone(net, terms=None, **changes):
    """Return the schedule that trains one net without a teacher."""
    return [Stage({net: terms or truth()}, training(**changes))]


def single(metrics, **changes):
    data = TorchData(samples(32), samples(24, 1), samples(24, 2), classes=CLASSES)
    return Recipe(data=data, schedule=alone(Net("student", Small(4)), **changes), metrics=metrics)


@pytest.mark.parametrize("by", [None, "brier"])
def test_of_an_error_the_epoch_with_the_least_is_kept(by):
    metrics = (Brier(), Accuracy()) if by is None else (Accuracy(), Brier())
    result = kdkit.run(lambda: single(metrics, epochs=6, monitor=by))
    epochs = result.history["student"]
    figures = [epoch["brier"] for epoch in epochs]
    kept = [epoch["epoch"] for epoch in epochs if epoch["kept"]]
    assert kept[-1] == int(np.argmin(figures))
    assert all(figures[each] == min(figures[: each + 1]) for each in kept)
    assert kept[0] == 0


def test_an_interval_is_reported_at_the_end_and_not_every_epoch(monkeypatch):
    asked = []
    score = BootstrapInterval.compute
    monkeypatch.setattr(BootstrapInterval, "compute", lambda self, test: asked.append(len(test)) or score(self, test))
    recipe = single((BootstrapInterval(MacroF1(), resamples=50),), epochs=3)
    result = kdkit.run(recipe)
    compute_metrics = result.metrics["student"]["macro_f1"]
    assert compute_metrics.interval[0] <= compute_metrics.value <= compute_metrics.interval[1]
    assert asked.count(24) == 1  # what is checked before is smaller
    assert "macro_f1" in result.history["student"][0]


def test_the_table_of_a_run_shows_an_interval_beside_its_figure():
    metrics = {"auc": MetricResult(value=0.8, interval=(0.75, 0.846)), "f1": MetricResult(value=0.5)}
    event = RunEnded(metrics={"net": metrics}, parameters={"net": 3}, reported_on="test", folder=None, seconds=1.0)
    trials = [next(iter(column.cells)) for column in metrics_table(event).columns]
    assert trials == ["net", "3", "0.8000 (0.7500 to 0.8460)", "0.5000"]


@dataclass(frozen=True)
class Remembering:
    """A score that tells a list which thresholds its figures rest on."""

    of: MacroF1
    told: list
    name = "macro_f1"

    def fit(self, validation):
        return replace(self, of=self.of.fit(validation))

    def compute(self, test):
        self.told.append((len(test), self.of.thresholds))
        return self.of.compute(test)


def several(count, first, permuted=None):
    """Return samples that may have several of three classes; permuted: a seed to deal their labels out anew."""
    random = torch.Generator().manual_seed(first)
    labels = (torch.rand(count, 3, generator=random) < 0.4).float()
    inputs = torch.randn(count, 6, generator=random)
    inputs[:, :3] += labels
    if permuted is not None:
        labels = labels[torch.randperm(count, generator=torch.Generator().manual_seed(permuted))]
    return TensorDataset(inputs, labels)


def test_permuted_test_labels_leave_every_threshold_the_same_bits():
    thresholds, figures = [], []
    for permuted in (None, 3):
        told = []

        def recipe(permuted=permuted, told=told):
            return Recipe(
                data=TorchData(several(40, 0), several(30, 1), several(26, 2, permuted), classes=CLASSES),
                schedule=alone(Net("student", Small(4)), Truth(nn.BCEWithLogitsLoss())),
                metrics=(Remembering(MacroF1(), told),),
            )

        result = kdkit.run(recipe)
        (used,) = [used for count, used in told if count == 26]
        thresholds.append(np.array(used).tobytes())
        figures.append(result.metrics["student"]["macro_f1"].value)
    assert thresholds[0] == thresholds[1]
    assert figures[0] != figures[1]


class Grouped(Split):
    """A split that knows which of its samples belong together, and its labels."""

    def __init__(self, split, groups):
        self.split = split
        self.groups = groups
        self.ids = split.ids
        self.labels = torch.cat([split.batch(torch.arange(len(split)), 0).labels])

    def __len__(self):
        return len(self.split)

    def batch(self, rows, draw):
        return self.split.batch(rows, draw)


def test_groups_and_training_positives_reach_the_run_folder_and_its_table(tmp_path, kdkit_here):
    plain = TorchData(samples(32), samples(24, 1), samples(24, 2), classes=CLASSES)

    class GroupedData(Data):
        classes, task, draws, fingerprint = plain.classes, plain.task, plain.draws, "grouped"
        train, validation, test = (
            Grouped(each, torch.arange(len(each)) // 2) for each in (plain.train, plain.validation, plain.test)
        )

    out = tmp_path / "out"
    metrics = (BootstrapInterval(MacroAUROC(), resamples=20),)
    recipe = Recipe(data=GroupedData(), schedule=alone(Net("student", Small(4))), metrics=metrics)
    result = kdkit.run(recipe, out=out)
    assert "20 resamples of groups (patients)" in result.metrics["student"]["macro_auroc"].note
    kept = json.loads((out / "metrics.json").read_text())["metrics"]["student"]["macro_auroc"]
    assert kept["interval"] == list(result.metrics["student"]["macro_auroc"].interval)
    assert set(kept["intervals_by_class"]) == set(CLASSES)
    said = kdkit_here("classes", out, "--resamples", 20)
    assert said.code == 0, said.err
    row = next(line for line in said.out.splitlines() if line.startswith("│ a "))
    assert [each.strip() for each in row.split("│")[2:6]] == ["11", "8", "8", "-"]
    assert kdkit_here("classes", out, "--net", "teacher").code == 2
    assert kdkit_here("classes", tmp_path / "nowhere").code == 2
