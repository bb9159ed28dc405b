"""Networks that fail for samples of the validation split are found before the first epoch."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit import Inputs, Match, MetricResult, Net, Recipe, Stage, TorchData, Training, Truth
from kdkit.losses import Hint
from kdkit.metrics.base import WithoutThresholds

INPUTS, NUMBERS = torch.randn(8, 4), torch.randn(8, 2)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs, steps):
        return self.layer(inputs) * steps[:, None]


def check(validation, module=None, **options):
    data = TorchData(TensorDataset(INPUTS, NUMBERS), validation, task="regression", **options)
    return check_of(data, Net("student", nn.Linear(4, 2) if module is None else module))


def check_of(data, student, *terms):
    objective = sum(terms, start=Truth(nn.MSELoss()))
    return kdkit.check(Recipe(data=data, schedule=[Stage({student: objective}, Training(epochs=1, batch_size=8))]))


@pytest.mark.parametrize("wrap", [lambda dataset: dataset, lambda dataset: DataLoader(dataset, batch_size=4)])
def test_validation_samples_of_another_size_are_a_problem(wrap):
    (problem,) = check(wrap(TensorDataset(torch.randn(8, 5), NUMBERS))).problems
    assert "on the validation data: net 'student' fails for its inputs ((4, 5)): RuntimeError: " in problem
    assert "shapes cannot be multiplied (4x5 and 4x2)" in problem


def test_test_samples_of_another_size_are_a_problem():
    splits = [TensorDataset(torch.randn(8, count), NUMBERS) for count in (4, 4, 5)]
    (problem,) = check_of(TorchData(*splits, task="regression"), Net("student", nn.Linear(4, 2))).problems
    assert "on the test data: net 'student' fails for its inputs ((4, 5)): RuntimeError: " in problem
    assert "shapes cannot be multiplied (4x5 and 4x2)" in problem


@pytest.mark.parametrize("split", ["validation", "test"])
def test_labels_of_another_size_than_the_outputs_are_a_problem(split):
    sizes = {"train": 6, "validation": 6, "test": 6, split: 3}
    splits = [TensorDataset(torch.randn(8, 4, 4), torch.randn(8, 4, size)) for size in sizes.values()]
    (problem,) = check_of(TorchData(*splits, task="regression"), Net("student", nn.Linear(4, 6))).problems
    assert f"metric 'r2' does not fit the {split} data (regression) and net 'student': metrics of numbers" in problem
    assert "got outputs (4, 4, 6) and labels (4, 4, 3)" in problem


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


def test_a_teacher_whose_inputs_the_validation_samples_lack_teaches_and_has_no_metrics():
    train = [({"weak": row, "strong": row}, number) for row, number in zip(INPUTS, NUMBERS, strict=True)]
    validation = [({"strong": row, "id": row}, number) for row, number in zip(INPUTS, NUMBERS, strict=True)]
    teacher = Net("teacher", nn.Linear(4, 2), view=Inputs(only=("weak",)), trained=True)
    student = Net("student", nn.Linear(4, 2), view=Inputs(only=("strong",)))
    data = TorchData(train, validation, task="regression")
    objective = Truth(nn.MSELoss()) + Match(teacher, nn.MSELoss())
    recipe = Recipe(data=data, schedule=[Stage({student: objective}, Training(epochs=1))])
    notices = kdkit.check(recipe).notices
    (notice,) = (notice for notice in notices if "'teacher'" in notice)
    assert notice.startswith("net 'teacher' cannot be evaluated on the validation data: only=... selects 'weak', ")
    assert notice.endswith("; it teaches, but has no metrics")
    assert [*kdkit.run(recipe).metrics] == ["student"]
    encoder = Net("encoder", nn.Linear(4, 7), view=Inputs(only=("weak",)), trained=True)
    assert not check_of(data, student, Match(encoder, Hint())).problems


def test_a_metric_that_runs_a_network_is_computed_for_those_that_it_can_run():
    class Norm(WithoutThresholds):
        name, any_outputs = "norm", True

        def reduce_network(self, network, batch):
            return network.weight.norm().expand(len(batch))

        def compute(self, test):
            return MetricResult(value=test.reduced["norm"].mean())

    teacher, student = Net("teacher", nn.Sequential(nn.Linear(4, 2)), trained=True), Net("student", nn.Linear(4, 2))
    rows = TensorDataset(INPUTS, NUMBERS)
    stage = Stage({student: 1.0 * Match(teacher, nn.MSELoss())}, Training(epochs=1))
    recipe = Recipe(data=TorchData(rows, rows, task="regression"), schedule=[stage], metrics=(Norm(),))
    (notice,) = (notice for notice in kdkit.check(recipe).notices if "'teacher'" in notice)
    assert "metric 'norm' cannot be computed for net 'teacher': AttributeError: 'Sequential'" in notice
    assert [*kdkit.run(recipe).metrics] == ["student"]


def test_a_teacher_that_is_a_function_may_take_validation_samples_of_another_size():
    pooled = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Linear(4, 2))
    data = TorchData(TensorDataset(INPUTS, NUMBERS), TensorDataset(torch.randn(8, 9), NUMBERS), task="regression")
    teacher = Net("teacher", lambda inputs: inputs[:, :2], version="1")
    assert not check_of(data, Net("student", pooled), Match(teacher, nn.MSELoss())).problems


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_without_a_shape_are_checked():
    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, series):
            return self.layer(torch.stack([item.mean(0) for item in series.unbind()]))

    def collate(samples):
        return torch.nested.nested_tensor([item for item, _ in samples]), torch.stack([label for _, label in samples])

    samples = [(torch.randn(2 + row % 3, 4), label) for row, label in enumerate(NUMBERS)]
    data = TorchData(samples, samples, task="regression", collate_fn=collate)
    assert not check_of(data, Net("student", Means())).problems


def test_validation_samples_with_more_candidates_are_a_problem():
    train, validation = (TensorDataset(torch.randn(8, count, 4), torch.zeros(8).long()) for count in (3, 5))
    data = TorchData(train, validation, classes=3)
    student = Net("student", nn.Sequential(nn.Linear(4, 1), nn.Flatten()))
    recipe = Recipe(data=data, schedule=[Stage({student: Truth(nn.CrossEntropyLoss())}, Training(epochs=1))])
    (problem,) = kdkit.check(recipe).problems
    assert "net 'student' has outputs (4, 5) for the validation data, but 3 classes need (4, 3); if they " in problem
