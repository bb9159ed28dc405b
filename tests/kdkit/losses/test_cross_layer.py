"""SemCKD: every layer against every layer, by attention."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit import RecipeError
from kdkit.losses import HCL, ReviewKD, SemCKD
from tests.helpers.losses import FACTS, built


def layers(*shapes, batch=4):
    return tuple(torch.randn(batch, *shape) for shape in shapes)


@pytest.mark.parametrize(
    ("student", "target"),
    [
        ([(3, 16), (4, 8)], [(6, 16), (7, 8), (8, 4)]),
        ([(3, 8, 8), (5,)], [(6, 8, 8), (7, 4, 4)]),
        ([(3, 16)], [(6, 4, 4), (7, 2, 2)]),
    ],
)
def test_any_number_of_layers_of_any_shapes_is_learned_from(student, target):
    student, target = layers(*student), layers(*target)
    loss = built(SemCKD(width=4), student, target, facts=replace(FACTS, classes=()))
    student = tuple(each.requires_grad_() for each in student)
    loss(student, target).backward()
    assert all(each.grad.any() for each in student)
    assert all(weight.grad is not None for weight in loss.parameters())


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 9])
def test_a_batch_of_any_size_is_attended_to(batch):
    student, target = layers((3, 8), batch=batch), layers((3, 8), (4, 4), batch=batch)
    loss = built(SemCKD(batch_size=4, width=4), student, target)
    attention = loss.attend(student, target)
    assert attention.shape == (batch, 1, 2)
    torch.testing.assert_close(attention.sum(2), torch.ones(batch, 1))


def test_a_larger_batch_is_embedded_in_parts():
    student, target = layers((3, 8), batch=6), layers((3, 8), (4, 4), batch=6)
    loss = built(SemCKD(batch_size=4, width=4), student, target)
    parts = [loss.attend(*(tuple(each[part] for each in side) for side in (student, target))) for part in PARTS]
    torch.testing.assert_close(loss.attend(student, target), torch.cat(parts))


PARTS = (slice(0, 4), slice(4, 6))


def test_a_high_temperature_heeds_all_layers_alike():
    student, target = layers((3, 8)), layers((3, 8), (4, 4))
    attention = built(SemCKD(temperature=1e6), student, target).attend(student, target)
    torch.testing.assert_close(attention, torch.full((4, 1, 2), 0.5))


def test_projectors_are_for_pairs_whose_channels_differ_where_automatic():
    student, target = layers((3, 8)), layers((3, 8), (4, 4))
    loss = built(SemCKD(projector="auto"), student, target)
    assert [isinstance(each, nn.Identity) for each in loss.projectors] == [True, False]


def test_never_refuses_channels_that_differ():
    with pytest.raises(RecipeError, match=r"SemCKD\(projector='always'\)"):
        built(SemCKD(projector="never"), layers((3, 8)), layers((4, 8)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 0}, "a temperature is"),
        ({"batch_size": 0}, "batch_size is"),
        ({"width": 0}, "width is"),
        ({"projector": "all"}, "projector is"),
    ],
)
def test_options_that_make_no_loss_are_refused(options, says):
    with pytest.raises(RecipeError, match=says):
        SemCKD(**options)


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
