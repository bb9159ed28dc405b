"""OFD: margins from the teacher's batch norm, and the part of the error that counts."""

import pytest
import torch
from torch import nn

from kdkit import RecipeError
from kdkit.losses import OFD
from kdkit.losses.margins import margins_of
from tests.helpers.losses import built

SHAPES = [((4, 3), (4, 5)), ((4, 3, 8), (4, 5, 4)), ((4, 3, 4, 6), (4, 5, 2, 3))]


def normed(channels=5):
    norm = nn.BatchNorm1d(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("shapes", SHAPES)
def test_features_of_any_dimension_are_learned_from_and_the_teacher_is_not(shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    teacher = nn.Sequential(nn.Linear(5, 5), normed())
    loss = built(OFD(), student, target, teacher)
    student.requires_grad_()
    loss(student, target).backward()
    assert student.grad.any()
    assert all(weight.grad is not None for weight in loss.parameters())
    assert all(weight.grad is None for weight in teacher.parameters())


def test_margins_are_the_mean_of_what_is_negative():
    torch.manual_seed(0)
    weight, bias = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, -3.0])
    values = torch.randn(200_000, 3) * weight + bias
    expected = torch.stack([column[column < 0].mean() for column in values.T])
    torch.testing.assert_close(margins_of(weight, bias), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("weight", "bias", "margin"), [(1.0, 9.0, -3.0), (0.0, -2.0, -2.0), (0.0, 2.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_margins_are_finite_where_hardly_anything_is_negative_or_nothing_varies(weight, bias, margin):
    assert margins_of(torch.tensor([weight]), torch.tensor([bias])).item() == pytest.approx(margin)


def test_a_student_below_a_negative_target_costs_nothing():
    loss = built(OFD(margin=-1.0, factor=1.0, projector="never"), torch.zeros(1, 4), torch.zeros(1, 4))
    target = torch.tensor([[-5.0, -5.0, 2.0, -0.5]])
    student = torch.tensor([[-3.0, 1.0, -1.0, -0.7]])
    assert loss(student, target).item() == pytest.approx((1 + 1) ** 2 + (-1 - 2) ** 2)


def test_the_teachers_batch_norm_is_no_part_of_the_loss():
    norm = normed()
    loss = built(OFD(norm), torch.zeros(2, 5), torch.zeros(2, 5))
    assert all(weight is not norm.weight for weight in loss.parameters())
    torch.testing.assert_close(loss.margins, margins_of(norm.weight.detach(), norm.bias.detach()))
    assert "margins" not in loss.state_dict()


def test_margins_follow_the_teacher_when_built_again():
    norm = normed()
    loss = built(OFD(norm), torch.zeros(2, 5), torch.zeros(2, 5))
    before = loss.margins.clone()
    with torch.no_grad():
        norm.bias -= 1
    built(loss, torch.zeros(2, 5), torch.zeros(2, 5))
    assert (loss.margins != before).all()
    torch.testing.assert_close(loss.margins, margins_of(norm.weight.detach(), norm.bias.detach()))


@pytest.mark.parametrize(
    "teacher", [None, nn.Linear(5, 5), nn.Sequential(normed(), normed()), nn.Sequential(normed(4))]
)
def test_a_teacher_without_the_one_batch_norm_is_refused(teacher):
    with pytest.raises(RecipeError, match="say which with OFD"):
        built(OFD(), torch.zeros(2, 5), torch.zeros(2, 5), teacher)


def test_a_batch_norm_of_other_channels_is_refused():
    with pytest.raises(RecipeError, match="no weights for the 5 channels"):
        built(OFD(normed(4)), torch.zeros(2, 5), torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"norm": nn.Linear(2, 2)}, "batch norm before the ReLU; got a Linear"),
        ({"margin": 0.5}, "a margin is"),
        ({"factor": 0}, "factor is"),
        ({"projector": "maybe"}, "projector is"),
    ],
)
def test_options_that_make_no_loss_are_refused(options, says):
    with pytest.raises(RecipeError, match=says):
        OFD(**options)


def test_never_refuses_shapes_that_differ():
    with pytest.raises(RecipeError, match=r"OFD\(projector='always'\) makes one"):
        built(OFD(margin=0.0, projector="never"), torch.zeros(2, 3), torch.zeros(2, 5))
