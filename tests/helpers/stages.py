"""Nets, data and recipes for the tests of whole runs, and functions that compare their results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from kdkit import Net, Optimizer, Parallel, Recipe, Result, Stage, TorchData, Training, Truth
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.losses import SoftTargets
from tests.helpers.tiny import same


class Small(nn.Module):
    """A network from six numbers to three classes, with batch norm and dropout: it has buffers and draws numbers."""

    def __init__(self, width: int = 8, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = nn.Linear(6, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.body(inputs)).relu()))  # (batch, 6) -> (batch, 3)


def samples(count: int, first: int = 0) -> TensorDataset:
    """Return points around three centres, one per class: the same points in each call with the same `first`."""
    generator = torch.Generator().manual_seed(first)
    labels = torch.arange(count) % 3
    centres = torch.eye(3, 6) * 1.5  # (class, feature); so far apart that a few epochs learn them
    return TensorDataset(centres[labels] + torch.randn(count, 6, generator=generator), labels)


def data(train: int = 32) -> TorchData:
    return TorchData(samples(train), samples(24, 1), samples(24, 2), classes=("a", "b", "c"))


def training(**changes: Any) -> Training:
    defaults: dict[str, Any] = {"epochs": 2, "batch_size": 8, "optimizer": Optimizer(SGD, lr=0.1, momentum=0.9)}
    return Training(**{**defaults, **changes})


def truth() -> Truth:
    return Truth(nn.CrossEntropyLoss())


def one_stage(
    net: Net[Any] | None = None,
    objective: Any = None,
    *,
    splits: TorchData | None = None,
    metrics: tuple[Any, ...] = (),
    **changes: Any,
) -> Recipe:
    """Return a recipe of one stage and one net, by default a student that learns from the labels."""
    stage = Stage({net or Net("student", Small(4)): objective or truth()}, training(**changes))
    return Recipe(data=splits or data(), schedule=[stage], metrics=metrics)


def three(schedule: Any = Parallel, **changes: Any) -> Recipe:
    """Return a recipe of three nets, of which the student is narrower than its teachers."""
    nets = Net("teacher", Small(12)), Net("assistant", Small(8)), Net("student", Small(4))
    options: dict[str, Any] = {"truth": truth(), "kd_loss": SoftTargets(), "training": training()}
    return Recipe(data=data(), schedule=schedule(*nets, **{**options, **changes}))


def copied(module: nn.Module) -> dict[str, Tensor]:
    # state_dict returns the tensors themselves, which training changes in place.
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_same_results(first: Result, second: Result) -> None:
    """Assert that two runs have the same bits: the terms of all epochs, the metrics, and the weights of all nets."""
    assert epoch_terms(first.history) == epoch_terms(second.history)
    assert first.metrics == second.metrics
    assert first.nets.keys() == second.nets.keys()
    for name, net in first.nets.items():
        assert same(net.network.state_dict(), second.nets[name].network.state_dict()), name


def epoch_terms(history: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Return the stage and the mean of each term for all epochs of a run."""
    return [(stage, epoch["terms"]) for stage, epochs in history.items() for epoch in epochs]


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors below a folder, by file and key."""
    return {
        f"{path.relative_to(folder)}:{key}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def last_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the last checkpoint in the folder of a stage, with its history as an entry, or None."""
    loaded = StageFolder(folder, writes=False).load_checkpoint()
    return None if loaded is None else {**loaded[0], "history": loaded[1]}
