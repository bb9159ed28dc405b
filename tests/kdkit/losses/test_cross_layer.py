"""SemCKD, HCL and ReviewKD: layers of any shapes, attention, scales, and invalid options."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit import RecipeError
from kdkit.losses import HCL, ReviewKD, SemCKD
from tests.helpers.losses import CONTEXT, build_loss


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
def test_any_number_of_layers_of_any_shapes_gives_gradients(student, target):
    student, target = layers(*student), layers(*target)
    loss = build_loss(SemCKD(width=4), student, target, context=replace(CONTEXT, classes=()))
    student = tuple(features.requires_grad_() for features in student)
    loss(student, target).backward()
    assert all(features.grad.any() for features in student)
    assert all(weight.grad is not None for weight in loss.parameters())


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 9])
def test_attention_takes_a_batch_of_any_size(batch):
    student, target = layers((3, 8), batch=batch), layers((3, 8), (4, 4), batch=batch)
    loss = build_loss(SemCKD(batch_size=4, width=4), student, target)
    attention = loss.attend(student, target)
    assert attention.shape == (batch, 1, 2)
    torch.testing.assert_close(attention.sum(2), torch.ones(batch, 1))


def test_a_larger_batch_is_embedded_in_parts():
    student, target = layers((3, 8), batch=6), layers((3, 8), (4, 4), batch=6)
    loss = build_loss(SemCKD(batch_size=4, width=4), student, target)
    parts = [loss.attend(*(tuple(features[part] for features in side) for side in (student, target))) for part in PARTS]
    torch.testing.assert_close(loss.attend(student, target), torch.cat(parts))


PARTS = (slice(0, 4), slice(4, 6))


def test_a_high_temperature_makes_attention_uniform():
    student, target = layers((3, 8)), layers((3, 8), (4, 4))
    attention = build_loss(SemCKD(temperature=1e6), student, target).attend(student, target)
    torch.testing.assert_close(attention, torch.full((4, 1, 2), 0.5))


def test_automatic_projectors_are_for_pairs_whose_channels_differ():
    student, target = layers((3, 8)), layers((3, 8), (4, 4))
    loss = build_loss(SemCKD(projector="auto"), student, target)
    assert [isinstance(projector, nn.Identity) for projector in loss.projectors] == [True, False]


def test_never_refuses_channels_that_differ():
    with pytest.raises(RecipeError, match=r"SemCKD\(projector='always'\)"):
        build_loss(SemCKD(projector="never"), layers((3, 8)), layers((4, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "a temperature must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"width": 0}, "width must be"),
        ({"projector": "all"}, "projector must be"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
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
def test_paired_layers_of_any_shapes_give_gradients(student, target):
    student, target = layers(*student), layers(*target)
    loss = build_loss(ReviewKD(width=4), student, target)
    student = tuple(features.requires_grad_() for features in student)
    loss(student, target).backward()
    assert all(features.grad.any() for features in student)
    assert all(weight.grad is not None for weight in loss.parameters())


def test_a_shallow_layer_depends_on_the_deeper_ones():
    student, target = layers((3, 8), (4, 4)), layers((3, 8), (4, 4))
    loss = build_loss(ReviewKD(), student, target).eval()
    changed = (student[0], torch.randn(4, 4, 4))
    shallow = [loss.fusions[0](student[0], loss.fusions[1](features)[1])[0] for features in (student[1], changed[1])]
    assert not torch.allclose(*shallow)


def test_layers_come_in_pairs():
    with pytest.raises(RecipeError, match="got 1 of the student and 2 of the teacher"):
        build_loss(ReviewKD(), layers((3, 8)), layers((3, 8), (4, 4)))


def test_a_width_is_at_least_one():
    with pytest.raises(RecipeError, match="width must be an integer of at least 1"):
        ReviewKD(width=0)


def test_the_width_is_that_of_the_students_deepest_layer():
    student, target = layers((3, 8), (9, 4)), layers((6, 8), (7, 4))
    assert {fusion.narrow.out_features for fusion in build_loss(ReviewKD(), student, target).fusions} == {9}


@pytest.mark.parametrize("shape", [(3, 9), (3, 9, 9), (3, 9, 9, 9)])
def test_each_scale_has_half_the_weight_of_the_one_before(shape):
    (student,), (target,) = layers(shape), layers(shape)
    difference = (student - target).flatten(2).mean(2)
    expected = (F.mse_loss(student, target) + 0.5 * difference.square().mean()) / 1.5
    torch.testing.assert_close(HCL(grids=(1,))(student, target), expected)


def test_a_vector_has_one_scale():
    (student,), (target,) = layers((3,)), layers((3,))
    torch.testing.assert_close(HCL()(student, target), F.mse_loss(student, target))


def test_the_attention_of_large_features_is_finite_under_autocast_in_fp16():
    student, target = layers((3, 8)), layers((3, 8), (4, 4))
    student, target = (tuple(1e4 * tap for tap in side) for side in (student, target))  # products of about 1e9
    loss = build_loss(SemCKD(width=4), student, target)
    expected = loss.attend(student, target)
    with torch.autocast("cpu", torch.float16):
        attention = loss.attend(*(tuple(tap.half() for tap in side) for side in (student, target)))
    torch.testing.assert_close(attention, expected, rtol=1e-2, atol=1e-3)
