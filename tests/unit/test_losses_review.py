"""ReviewKD: layers fused from deep to shallow, compared at several scales."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit import RecipeError
from kdkit.losses import HCL, ReviewKD

from .building import built


def layers(*shapes):
    return tuple(torch.randn(4, *shape) for shape in shapes)


@pytest.mark.parametrize(
    ("student", "target"),
    [
        ([(3, 16), (4, 8), (5, 4)], [(6, 16), (7, 8), (8, 4)]),
        ([(3, 8, 8), (4, 4, 4), (5,)], [(6, 8, 8), (7, 4, 4), (8,)]),
        ([(3, 12), (4, 6)], [(6, 10), (7, 9)]),
        ([(3, 16), (4, 16)], [(6, 4, 4), (7, 2, 2)]),
        ([(3, 4, 4)], [(6, 8, 8)]),
        ([(3, 4, 6)], [(5,)]),
        ([(3, 5), (4,)], [(5,), (6,)]),
    ],
)
def test_layers_of_any_shapes_are_learned_from(student, target):
    student, target = layers(*student), layers(*target)
    loss = built(ReviewKD(width=4), student, target)
    student = tuple(each.requires_grad_() for each in student)
    loss(student, target).backward()
    assert all(each.grad.any() for each in student)
    assert all(weight.grad is not None for weight in loss.parameters())


def test_a_shallow_layer_is_pulled_by_what_the_deeper_ones_say():
    student, target = layers((3, 8), (4, 4)), layers((3, 8), (4, 4))
    loss = built(ReviewKD(), student, target).eval()
    other = (student[0], torch.randn(4, 4, 4))
    shallow = [loss.fusions[0](student[0], loss.fusions[1](each)[1])[0] for each in (student[1], other[1])]
    assert not torch.allclose(*shallow)


def test_layers_come_in_pairs():
    with pytest.raises(RecipeError, match="got 1 of the student and 2 of the teacher"):
        built(ReviewKD(), layers((3, 8)), layers((3, 8), (4, 4)))


def test_a_width_is_at_least_one():
    with pytest.raises(RecipeError, match="width is a whole number of at least 1"):
        ReviewKD(width=0)


def test_the_width_is_that_of_the_students_deepest_layer():
    student, target = layers((3, 8), (9, 4)), layers((6, 8), (7, 4))
    assert {fusion.narrow.out_features for fusion in built(ReviewKD(), student, target).fusions} == {9}


@pytest.mark.parametrize("shape", [(3, 9), (3, 9, 9), (3, 9, 9, 9)])
def test_scales_are_halved_in_weight_and_averaged(shape):
    (student,), (target,) = layers(shape), layers(shape)
    apart = (student - target).flatten(2).mean(2)
    expected = (F.mse_loss(student, target) + 0.5 * apart.square().mean()) / 1.5
    torch.testing.assert_close(HCL(grids=(1,))(student, target), expected)


def test_a_vector_has_one_scale():
    (student,), (target,) = layers((3,)), layers((3,))
    torch.testing.assert_close(HCL()(student, target), F.mse_loss(student, target))
