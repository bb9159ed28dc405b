"""OFD and AB: the margins from the teacher's batch norm, the partial error, and the activation boundaries."""

import pytest
import torch
from torch import nn

from kdkit import RecipeError
from kdkit.losses import AB, OFD
from kdkit.losses.margins import channel_margins
from tests.helpers.loss_reference import assert_equals_reference
from tests.helpers.losses import build_loss

SHAPES = [((4, 3), (4, 5)), ((4, 3, 8), (4, 5, 4)), ((4, 3, 4, 6), (4, 5, 2, 3))]


def random_norm(channels=5):
    norm = nn.BatchNorm1d(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("shapes", SHAPES)
def test_student_and_weights_get_a_gradient_and_the_teacher_none(shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    teacher = nn.Sequential(nn.Linear(5, 5), random_norm())
    loss = build_loss(OFD(), student, target, teacher)
    student.requires_grad_()
    loss(student, target).backward()
    assert student.grad.any()
    assert all(weight.grad is not None for weight in loss.parameters())
    assert all(weight.grad is None for weight in teacher.parameters())


def test_margins_are_the_mean_of_the_negative_values():
    torch.manual_seed(0)
    weight, bias = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, -3.0])
    values = torch.randn(200_000, 3) * weight + bias
    expected = torch.stack([column[column < 0].mean() for column in values.T])
    torch.testing.assert_close(channel_margins(weight, bias), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("weight", "bias", "margin"), [(1.0, 9.0, -3.0), (0.0, -2.0, -2.0), (0.0, 2.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_margins_are_finite_for_rare_negative_values_and_for_constant_channels(weight, bias, margin):
    assert channel_margins(torch.tensor([weight]), torch.tensor([bias])).item() == pytest.approx(margin)


def test_a_student_below_a_negative_target_has_no_error():
    loss = build_loss(OFD(margin=-1.0, factor=1.0, projector="never"), torch.zeros(1, 4), torch.zeros(1, 4))
    target = torch.tensor([[-5.0, -5.0, 2.0, -0.5]])
    student = torch.tensor([[-3.0, 1.0, -1.0, -0.7]])
    assert loss(student, target).item() == pytest.approx((1 + 1) ** 2 + (-1 - 2) ** 2)


def test_the_teachers_batch_norm_is_not_a_part_of_the_loss():
    norm = random_norm()
    loss = build_loss(OFD(norm), torch.zeros(2, 5), torch.zeros(2, 5))
    assert all(weight is not norm.weight for weight in loss.parameters())
    torch.testing.assert_close(loss.margins, channel_margins(norm.weight.detach(), norm.bias.detach()))
    assert "margins" not in loss.state_dict()


def test_a_second_build_computes_new_margins():
    norm = random_norm()
    loss = build_loss(OFD(norm), torch.zeros(2, 5), torch.zeros(2, 5))
    before = loss.margins.clone()
    with torch.no_grad():
        norm.bias -= 1
    build_loss(loss, torch.zeros(2, 5), torch.zeros(2, 5))
    assert (loss.margins != before).all()
    torch.testing.assert_close(loss.margins, channel_margins(norm.weight.detach(), norm.bias.detach()))


@pytest.mark.parametrize(
    "teacher", [None, nn.Linear(5, 5), nn.Sequential(random_norm(), random_norm()), nn.Sequential(random_norm(4))]
)
def test_a_teacher_without_exactly_one_matching_batch_norm_is_refused(teacher):
    with pytest.raises(RecipeError, match=r"pass one, OFD\("):
        build_loss(OFD(), torch.zeros(2, 5), torch.zeros(2, 5), teacher)


def test_a_batch_norm_with_different_channels_is_refused():
    with pytest.raises(RecipeError, match="no weights for the 5 channels"):
        build_loss(OFD(random_norm(4)), torch.zeros(2, 5), torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": nn.Linear(2, 2)}, "batch norm before the ReLU; got a Linear"),
        ({"margin": 0.5}, "margin must be"),
        ({"factor": 0}, "factor must be"),
        ({"projector": "maybe"}, "projector must be"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        OFD(**options)


def test_never_refuses_shapes_that_differ():
    with pytest.raises(RecipeError, match=r"use OFD\(projector='auto'\)"):
        build_loss(OFD(margin=0.0, projector="never"), torch.zeros(2, 3), torch.zeros(2, 5))


def boundary_reference(margin, factor):
    """Return AB as in its authors' code: squares of the student's distance from the margin, selected by masks."""

    def loss(student, target):
        inactive = (student + margin) ** 2 * ((student > -margin) & (target <= 0))
        active = (student - margin) ** 2 * ((student <= margin) & (target > 0))
        return factor * (inactive + active).sum() / len(student)

    return loss


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("options", [{}, {"margin": 0.3, "factor": 2.0}])
def test_ab_is_the_squared_distance_from_the_margin_on_the_teachers_side(shapes, options):
    shape = shapes[1]
    student, target = torch.randn(shape), torch.randn(shape)
    target[0] = 0  # a value of 0 is not active
    loss = build_loss(AB(projector="never", **options), student, target)
    reference = boundary_reference(**{"margin": 1.0, "factor": 3e-3} | options)
    assert_equals_reference(loss, reference, student, target)


@pytest.mark.parametrize("shapes", SHAPES)
def test_ab_maps_the_student_to_the_channels_of_the_teacher(shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    loss = build_loss(AB(factor=1.0), student, target)
    student.requires_grad_()
    value = loss(student, target)
    value.backward()
    assert student.grad.any()
    assert all(weight.grad.any() for name, weight in loss.named_parameters() if name != "connector.1.bias")
    assert [type(layer).__name__ for layer in loss.connector] == ["Pointwise", "BatchNorm"]


def test_ab_is_zero_beyond_the_margin_and_ignores_the_scale_of_the_teacher():
    loss = build_loss(AB(factor=1.0, projector="never"), torch.zeros(1, 4), torch.zeros(1, 4))
    student, target = torch.tensor([[1.5, -1.0, 0.5, 0.0]]), torch.tensor([[0.1, -3.0, 2.0, -1.0]])
    assert loss(student, target).item() == pytest.approx(0.5**2 + 1)
    assert loss(student, 1e-3 * target).item() == pytest.approx(0.5**2 + 1)


@pytest.mark.parametrize("options", [{"margin": 0}, {"factor": -1.0}, {"projector": "maybe"}])
def test_ab_refuses_invalid_options(options):
    with pytest.raises(RecipeError):
        AB(**options)
