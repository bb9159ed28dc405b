"""SKD: its formula, the numbers of torchdistill, and finite gradients at a distance of 0."""

import math

import numpy as np
import pytest
import torch

from kdkit import RecipeError
from kdkit.losses import SKD, SoftTargets
from tests.helpers.loss_reference import assert_equals_reference

STUDENT = torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.0, 2.0], [3.0, 0.0, 1.0], [-2.0, 1.0, 0.0]])
TARGET = torch.tensor([[2.0, 1.0, 0.0], [0.0, -2.0, 1.0], [1.0, 1.0, 2.0], [-1.0, 2.0, 0.5]])


def distance_reference(tikhonov):
    """Return the mean of √(D_i (cov D + tikhonov I)⁻¹ D_i), with an inverse and loops over the pairs."""

    def loss(student, target):
        sides, count = (student, target), len(student)
        rows = []
        for first in range(count):
            cosines = [
                [(side[first] @ side[second]) / (side[first].norm() * side[second].norm()) for side in sides]
                for second in range(count)
            ]
            rows.append(torch.stack([ours - theirs for ours, theirs in cosines]))
        difference = torch.stack(rows)
        covariance = sum(torch.outer(row - difference.mean(0), row - difference.mean(0)) for row in difference) / (
            count - 1
        )
        inverse = (covariance + tikhonov * torch.eye(count, dtype=student.dtype)).inverse()
        return sum((row @ inverse @ row).sqrt() for row in difference) / count

    return loss


@pytest.mark.parametrize("tikhonov", [0.1, 2.0])
def test_the_distance_is_that_of_the_paper(tikhonov):
    # student and target differ in every row, since the reference has an infinite gradient for equal rows
    loss = SKD(instance=0.0, tikhonov=tikhonov)
    assert_equals_reference(loss, distance_reference(tikhonov), STUDENT, TARGET)


def test_both_terms_have_the_values_of_torchdistill():
    student, target = STUDENT.double(), TARGET.double()
    # SKDInstanceLoss and SKDDirectionLoss of torchdistill 1.1.5 in its mode "paper"; it adds 0.1 in float32
    assert SKD(direction=0.0)(student, target).item() == pytest.approx(0.024179131238514333, rel=1e-10)
    assert SKD(instance=0.0)(student, target).item() == pytest.approx(1.295449643299372, rel=1e-8)
    both = SKD(instance=2.0, direction=0.5)(student, target).item()
    assert both == pytest.approx(2 * 0.024179131238514333 + 1.295449643299372 / 2, rel=1e-8)


def test_the_divergence_is_that_of_soft_targets():
    expected = SoftTargets(temperature=2.0)(STUDENT, TARGET)
    torch.testing.assert_close(SKD(direction=0.0, temperature=2.0, t_squared=True)(STUDENT, TARGET), expected)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_equal_logits_have_a_distance_and_a_gradient_of_zero(count):
    # torchdistill gives NaN here: the square root has an infinite gradient at 0
    student = STUDENT[:count].clone().requires_grad_()
    value = SKD()(student, STUDENT[:count])
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.equal(student.grad.isfinite(), torch.ones_like(student, dtype=torch.bool))


def test_a_single_row_that_agrees_has_a_finite_gradient():
    # The last row of both sides has no direction, so its row of differences is 0 and the others are not.
    student, target = STUDENT.clone(), TARGET.clone()
    student[3], target[3] = 0, 0
    student.requires_grad_()
    SKD()(student, target).backward()
    assert student.grad.isfinite().all()
    assert student.grad[:3].any()


def test_the_distance_ignores_the_scale_of_the_logits():
    loss = SKD(instance=0.0)
    torch.testing.assert_close(loss(7 * STUDENT, 0.1 * TARGET), loss(STUDENT, TARGET))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_value_and_gradient_are_finite_for_any_scale(scale, dtype):
    student = (STUDENT * scale).to(dtype).requires_grad_()
    value = SKD()(student, (TARGET * scale).to(dtype))
    value.backward()
    assert value.isfinite()
    assert np.isfinite(student.grad.float().numpy()).all()


@pytest.mark.parametrize(
    "options", [{"tikhonov": 0.0}, {"tikhonov": -1.0}, {"temperature": 0.0}, {"instance": math.nan}, {"t_squared": 1}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(RecipeError):
        SKD(**options)
    with pytest.raises(RecipeError, match="instance and direction are all 0"):
        SKD(instance=0.0, direction=0.0)
