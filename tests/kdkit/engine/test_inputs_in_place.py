"""A network that changes its inputs in place does not change those of the others."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit import Ema, Match, Net, Recipe, Stage, TeacherOutput, TeacherSession, TorchData, Training, Truth
from kdkit.errors import CheckError
from kdkit.losses import SoftTargets


class Normalised(nn.Module):
    """Scales its inputs in place, as torchvision's Normalize(inplace=True) does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs):
        inputs.mul_(0.0)
        return self.layer(inputs)


class Recording(nn.Module):
    """Keeps copies of its inputs."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 3), []

    def forward(self, inputs):
        self.seen.append(inputs.detach().clone())
        return self.layer(inputs)


def data(loader=False):
    inputs = torch.arange(1.0, 33.0).view(8, 4)
    split = TensorDataset(inputs, torch.arange(8) % 3)
    return TorchData(DataLoader(split, 4) if loader else split, split, classes=["a", "b", "c"])


def train(objectives, splits):
    kdkit.run(Recipe(data=splits, schedule=[Stage(objectives, Training(epochs=1, batch_size=4))]), device="cpu")


def soft(teacher):
    return Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())


@pytest.mark.parametrize("loader", [False, True])
def test_a_teacher_that_changes_its_inputs_gets_copies(loader):
    teacher, student = Net("teacher", Normalised(), trained=True), Net("student", Recording())
    train({student: soft(teacher)}, data(loader))
    assert all((inputs != 0).all() for inputs in student.module.seen)


def test_a_student_that_changes_its_inputs_gets_copies():
    first, second = Net("first", Normalised()), Net("second", Recording())
    train({first: Truth(nn.CrossEntropyLoss()), second: Truth(nn.CrossEntropyLoss())}, data())
    assert all((inputs != 0).all() for inputs in second.module.seen)


def test_an_average_of_a_student_that_changes_its_inputs_gets_copies():
    first, second = Net("first", Normalised()), Net("second", Recording())
    train({first: soft(Ema(first)), second: Truth(nn.CrossEntropyLoss())}, data())
    assert all((inputs != 0).all() for inputs in second.module.seen)


def test_a_user_defined_teacher_that_changes_its_inputs_is_refused():
    class Session(TeacherSession):
        def __call__(self, batch):
            batch.inputs.zero_()
            return TeacherOutput(torch.zeros(len(batch), 3))

    class Zero:
        name = "zero"

        def open(self, taps, context):
            return Session()

    with pytest.raises(CheckError, match=r"'zero' changes its inputs in place, .* inputs = inputs.clone\(\)"):
        train({Net("student", Recording()): soft(Zero())}, data())


@pytest.mark.parametrize("side", [0, 1])
def test_a_loss_that_changes_outputs_in_place_is_refused(side):
    """Otherwise, terms after it would get the changed outputs."""

    def softened(*sides):
        sides[side].div_(4)
        return nn.functional.mse_loss(*sides)

    teacher, student = Net("teacher", nn.Linear(4, 3), trained=True), Net("student", nn.Linear(4, 3))
    with pytest.raises(CheckError, match=r"term 'teacher/softened': softened changes its inputs in place"):
        train({student: Match(teacher, softened) + Truth(nn.CrossEntropyLoss())}, data())
