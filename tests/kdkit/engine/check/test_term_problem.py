"""A check refuses losses whose target must be probabilities, and names what is not a finite number."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit import Match, Net, Teachers, TorchData, Truth, check
from kdkit.losses import PerTeacher, SoftTargets
from tests.helpers.open_stages import only_problem
from tests.helpers.tiny import Mlp, one_stage, plain_goal, samples, tiny_net


def teacher_and_student():
    """Return a trained teacher and an untrained student."""
    return tiny_net("teacher", trained=True), tiny_net("student", seed=1)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            nn.CrossEntropyLoss(),
            r"must be probabilities, but these are numbers from -.* to .*; use kdkit.losses",
        ),
        (F.cross_entropy, r"must be probabilities, .*; use kdkit.losses.SoftTargets\(temperature=1\), which takes the"),
        (nn.BCEWithLogitsLoss(), r"must be probabilities, .*; use kdkit.losses.PerLabelSoftTargets\(temperature=1\)"),
        (nn.KLDivLoss(reduction="batchmean"), r"takes log-probabilities of the student, .* and probabilities"),
        (nn.KLDivLoss(log_target=True), r"of the student, .* and log-probabilities of the teacher, but got"),
        (nn.PoissonNLLLoss(), r"must be counts, but these are numbers from -.*; use a loss on numbers"),
        (nn.SoftMarginLoss(), r"must be labels of 1 and -1, but"),
    ],
)
def test_a_loss_of_torch_on_probabilities_or_labels_refuses_the_logits_of_a_teacher(loss, message):
    teacher, student = teacher_and_student()
    assert re.search(message, only_problem(one_stage(student, plain_goal() + Match(teacher, loss))))


def test_classes_that_are_floats_are_named_by_the_loss_that_does_not_fit():
    rows = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8.0) % 3)
    for loss in (nn.MSELoss(), nn.CrossEntropyLoss()):
        problem = only_problem(one_stage(tiny_net("student"), Truth(loss), TorchData(rows, rows)))
        assert "labels that are floats are numbers (regression); if they are classes, make them integers" in problem


def test_a_loss_for_each_teacher_is_checked_as_well():
    teacher, student = teacher_and_student()
    both = Teachers(teacher, tiny_net("second", seed=3, trained=True))
    problem = only_problem(one_stage(student, plain_goal() + Match(both, PerTeacher(nn.CrossEntropyLoss()))))
    assert "its target must be probabilities, but these are numbers from -" in problem


class Probabilities(Mlp):
    """A network whose outputs are probabilities, or the logarithms of probabilities."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(super().forward(inputs), dim=1)


@pytest.mark.parametrize(
    ("loss", "student", "teacher"),
    [
        (nn.CrossEntropyLoss(), None, F.softmax),
        (nn.BCEWithLogitsLoss(), None, F.softmax),
        (nn.KLDivLoss(reduction="batchmean"), F.log_softmax, F.softmax),
        (nn.KLDivLoss(reduction="batchmean", log_target=True), F.log_softmax, F.log_softmax),
        (nn.BCELoss(), F.softmax, F.softmax),
        (nn.MSELoss(), None, None),
        (nn.HuberLoss(), None, None),
    ],
)
def test_a_loss_of_torch_takes_the_probabilities_of_a_teacher(loss, student, teacher):
    nets = [
        Net(name, Mlp() if function is None else Probabilities(function), trained=name == "teacher")
        for name, function in (("student", student), ("teacher", teacher))
    ]
    check(one_stage(nets[0], plain_goal() + Match(nets[1], loss))).require()


def test_a_teacher_with_a_weight_that_is_not_finite_is_named():
    teacher, student = teacher_and_student()
    with torch.no_grad():
        teacher.module.head.weight[0, 0] = torch.nan
    problem = only_problem(one_stage(student, plain_goal() + Match(teacher, SoftTargets())))
    assert (
        "is nan at the first step: the outputs of 'teacher' for samples 0, 1, 2, 3 (4 of 4 in the batch) are" in problem
    )
    assert problem.endswith("or compute or cache the outputs in another precision: fp16 ends at 65504")


def test_inputs_that_are_not_finite_are_named_before_the_first_step():
    split = samples()
    split.tensors[0][2, 1] = torch.nan
    problem = only_problem(one_stage(tiny_net("student"), plain_goal(), TorchData(split, samples(), samples())))
    assert "CrossEntropyLoss is nan at the first step: the inputs of samples 2 (1 of 4 in the batch) are not" in problem
