"""Nets, data and recipes small enough for a test, and what looks at them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from kdkit import Net, Optimizer, Parallel, Recipe, TorchData, Training, Truth
from kdkit.losses import SoftTargets


class Small(nn.Module):
    """Six numbers in, three classes out, with batch norm and dropout on the way."""

    def __init__(self, width: int = 8, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = nn.Linear(6, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.body(inputs)).relu()))


def samples(count: int, first: int = 0) -> TensorDataset:
    """Three clouds of points, each around its own corner, the same at every call."""
    generator = torch.Generator().manual_seed(first)
    labels = torch.arange(count) % 3
    centres = torch.eye(3, 6) * 1.5
    return TensorDataset(centres[labels] + torch.randn(count, 6, generator=generator), labels)


def data(train: int = 32) -> TorchData:
    return TorchData(samples(train), samples(24, 1), samples(24, 2), classes=("a", "b", "c"))


def training(**changes: Any) -> Training:
    plain: dict[str, Any] = {"epochs": 2, "batch_size": 8, "optimizer": Optimizer(SGD, lr=0.1, momentum=0.9)}
    return Training(**{**plain, **changes})


def truth() -> Truth:
    return Truth(nn.CrossEntropyLoss())


def three(schedule: Any = Parallel, **changes: Any) -> Recipe:
    """A recipe of three nets, whose student is narrower than its teachers."""
    nets = Net("teacher", Small(12)), Net("assistant", Small(8)), Net("student", Small(4))
    how: dict[str, Any] = {"truth": truth(), "kd_loss": SoftTargets(), "training": training()}
    return Recipe(data=data(), schedule=schedule(*nets, **{**how, **changes}))


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def told(history: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Every epoch's terms, by stage; what a run's losses were."""
    return [(stage, epoch["terms"]) for stage, epochs in history.items() for epoch in epochs]
