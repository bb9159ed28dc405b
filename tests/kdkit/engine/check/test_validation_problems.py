"""Networks that fail for samples of the validation split are found before the first epoch."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit import Net, Recipe, Stage, TorchData, Training, Truth

INPUTS, NUMBERS = torch.randn(8, 4), torch.randn(8, 2)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs, steps):
        return self.layer(inputs) * steps[:, None]


def check(validation, module=None, **options):
    data = TorchData(TensorDataset(INPUTS, NUMBERS), validation, task="regression", **options)
    student = Net("student", nn.Linear(4, 2) if module is None else module)
    stage = Stage({student: Truth(nn.MSELoss())}, Training(epochs=1, batch_size=8))
    return kdkit.check(Recipe(data=data, schedule=[stage]))


@pytest.mark.parametrize("wrap", [lambda dataset: dataset, lambda dataset: DataLoader(dataset, batch_size=4)])
def test_validation_samples_of_another_size_are_a_problem(wrap):
    (problem,) = check(wrap(TensorDataset(torch.randn(8, 5), NUMBERS))).problems
    assert "net 'student' fails for its inputs ((4, 5)): RuntimeError: mat1 and mat2" in problem
    assert problem.endswith("; these are inputs of the validation data")


def test_validation_samples_of_another_size_that_the_network_takes_are_none():
    pooled = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Linear(4, 2))
    assert not check(TensorDataset(torch.randn(8, 9), NUMBERS), pooled).problems


def test_validation_samples_without_the_inputs_that_a_batch_transform_adds_are_a_problem():
    def add_steps(inputs, labels):
        return (inputs, torch.rand(len(inputs))), labels

    (problem,) = check(TensorDataset(INPUTS, NUMBERS), TwoInputs(), batch_transform=add_steps).problems
    assert "missing 1 required positional argument: 'steps'" in problem
    assert problem.endswith("; batch_transform changes only training batches")
    pairs = [*zip(zip(INPUTS, torch.rand(8), strict=True), NUMBERS, strict=True)]
    assert not check(pairs, TwoInputs(), batch_transform=add_steps).problems
