"""SRRL: which classifier of the teacher is used, and that it is not trained."""

import pytest
import torch
from torch import nn

from kdkit import RecipeError
from kdkit.losses import SRRL
from tests.helpers.losses import build_loss


def teacher():
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 6), nn.Linear(5, 3))


@pytest.mark.parametrize(
    "shapes", [((4, 2), (4, 5)), ((4, 2, 8), (4, 5, 4)), ((4, 2, 4, 4), (4, 5, 2, 2)), ((4, 2, 4), (4, 5))]
)
def test_student_and_weights_get_a_gradient_and_the_teacher_none(shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    teacher_module = teacher()
    loss = build_loss(SRRL(), student, target, teacher_module)
    loss(student.requires_grad_(), target).backward()
    assert student.grad.any()
    assert all(weight.grad is not None for weight in loss.parameters())
    assert all(weight.grad is None for weight in teacher_module.parameters())


def test_the_last_layer_that_fits_is_the_classifier():
    teacher_module = teacher()
    loss = build_loss(SRRL(), torch.zeros(4, 2), torch.zeros(4, 5), teacher_module)
    features = torch.randn(4, 5)
    torch.testing.assert_close(loss.classify(features), teacher_module[2](features))


def test_a_convolution_with_kernel_one_is_a_classifier_too():
    convolution = nn.Conv2d(5, 3, 1, bias=False)
    loss = build_loss(SRRL(convolution), torch.zeros(4, 2, 2, 2), torch.zeros(4, 5, 2, 2))
    features = torch.randn(4, 5, 2, 2)
    torch.testing.assert_close(loss.classify(features), convolution(features).mean((2, 3)))


@pytest.mark.parametrize("shapes", [((4, 2, 6), (4, 5, 4)), ((4, 2, 4, 3), (4, 5, 2, 2)), ((4, 2, 3), (4, 5))])
def test_maps_are_projected_at_each_position_and_then_averaged(shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    teacher_module = teacher()
    loss = build_loss(SRRL(), student, target, teacher_module)

    def pool(features):
        return features.flatten(2).mean(2) if features.ndim > 2 else features

    rows = student.flatten(2).mT @ loss.connector[0].weight.T  # (batch, positions, channels)
    variance, mean = torch.var_mean(rows, (0, 1), correction=0)
    projected = ((rows - mean) / (variance + 1e-5).sqrt()).relu().mean(1)
    feature = (projected - pool(target)).square().mean()
    regression = (teacher_module[2](projected) - teacher_module[2](pool(target))).square().mean()
    torch.testing.assert_close(loss(student, target), feature + regression)


def test_the_teachers_logits_may_be_tapped():
    student, features, teacher_module = torch.randn(4, 2), torch.randn(4, 5), teacher()
    logits = teacher_module[2](features).detach()
    loss = build_loss(SRRL(), student, (features, logits), teacher_module)
    torch.testing.assert_close(loss(student, (features, logits)), loss(student, features))


def test_the_classifier_is_neither_trained_nor_saved():
    loss = build_loss(SRRL(), torch.zeros(4, 2), torch.zeros(4, 5), teacher())
    assert sum(weight.numel() for weight in loss.parameters()) == 5 * 2 + 2 * 5
    assert not [name for name in loss.state_dict() if name.startswith("classifier")]


@pytest.mark.parametrize("teacher_module", [None, nn.Linear(4, 3), nn.Conv1d(5, 3, 3)])
def test_a_teacher_without_a_classifier_is_refused(teacher_module):
    with pytest.raises(RecipeError, match="no Linear layer from 5 channels"):
        build_loss(SRRL(), torch.zeros(4, 2), torch.zeros(4, 5), teacher_module)


def test_a_classifier_with_different_channels_is_refused():
    with pytest.raises(RecipeError, match="from the 5 channels"):
        build_loss(SRRL(nn.Linear(4, 3)), torch.zeros(4, 2), torch.zeros(4, 5))


def test_more_than_features_and_logits_are_refused():
    with pytest.raises(RecipeError, match="got 3 taps"):
        build_loss(SRRL(), torch.zeros(4, 2), (torch.zeros(4, 5),) * 3, teacher())


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_finite_and_not_negative(weight):
    with pytest.raises(RecipeError, match="a finite number of at least 0"):
        SRRL(regression=weight)
