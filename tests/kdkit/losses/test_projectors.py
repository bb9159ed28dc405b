"""Kinds of projectors: where convolutions reach the wanted positions, and tokens become maps and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdkit import RecipeError
from kdkit.losses.projectors import (
    KINDS,
    BatchNorm,
    Pointwise,
    Projector,
    Regressor,
    arrange,
    make_projector,
    meet,
    resize,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given_shape", "wanted"),
    [
        ((2, 3), (2, 5)),
        ((2, 3, 9), (2, 5, 7)),
        ((2, 3, 8), (2, 5, 4)),
        ((2, 3, 4), (2, 5, 8)),
        ((2, 3, 100), (2, 5, 7)),
        ((2, 3, 5), (2, 5, 7)),
        ((2, 3, 9), (2, 5)),
        ((2, 3, 9, 6), (2, 5, 7, 8)),
        ((2, 3, 4, 4, 4), (2, 5, 2, 2, 2)),
        ((2, 3, 24), (2, 5, 4, 6)),
        ((2, 3, 24), (2, 5, 8, 12)),
        ((2, 3, 8, 12), (2, 5, 24)),
    ],
)
def test_every_kind_reaches_the_wanted_shape_and_is_trained(kind, given_shape, wanted):
    project = make_projector(kind, torch.Size(given_shape), torch.Size(wanted))
    for batch in (3, 1):
        projected = project(torch.randn(batch, *given_shape[1:]))
        assert projected.shape == (batch, *wanted[1:])
    projected.square().sum().backward()
    assert all(weight.grad is not None for weight in project.parameters())


SIZES = st.integers(1, 9)
POSITIONS = st.integers(0, 3).flatmap(lambda count: st.tuples(*[st.lists(SIZES, min_size=count, max_size=count)] * 2))


@settings(max_examples=60, deadline=None)
@given(POSITIONS, SIZES, SIZES, st.sampled_from(list(KINDS)))
def test_any_positions_are_brought_to_any_others(positions, given_channels, wanted_channels, kind):
    shapes = torch.Size((2, given_channels, *positions[0])), torch.Size((2, wanted_channels, *positions[1]))
    assert make_projector(kind, *shapes)(torch.randn(shapes[0])).shape == shapes[1]


@pytest.mark.parametrize(
    ("given_positions", "wanted", "kernel"),
    [((14,), (12,), (3,)), ((7, 6), (5, 4), (3, 3)), ((5,), (5,), (1,)), ((100,), (7,), (3,)), ((5,), (7,), (3,))],
)
def test_the_kernel_of_a_regressor_is_as_long_as_positions_shrink(given_positions, wanted, kernel):
    regressor = Regressor(torch.Size((2, 3, *given_positions)), torch.Size((2, 5, *wanted)))
    assert regressor.conv.kernel_size == kernel


def test_a_regressor_without_relu_may_be_negative():
    shapes = torch.Size((2, 3, 8)), torch.Size((2, 5, 6))
    assert (Regressor(*shapes)(torch.randn(2, 3, 8)) >= 0).all()
    assert (Regressor(*shapes, relu=False)(torch.randn(2, 3, 8)) < 0).any()


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 2), (4, 3, 2, 2, 2)])
def test_batch_norm_takes_any_dimension(shape):
    features = torch.randn(shape) * 3 + 1
    normed = BatchNorm(3)(features).transpose(0, 1).flatten(1)
    torch.testing.assert_close(normed.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(normed.std(1, correction=0), torch.ones(3), rtol=0, atol=1e-3)


def test_batch_norm_of_a_single_value_takes_the_running_statistics():
    norm, features = BatchNorm(3), torch.randn(1, 3)
    torch.testing.assert_close(norm(features), norm.eval()(features))


def test_a_pointwise_map_is_a_convolution_of_one():
    linear, convolution = Pointwise(3, 2), nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        convolution.weight.copy_(linear.weight[:, :, None, None])
        convolution.bias.copy_(linear.bias)
    features = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(linear(features), convolution(features))


def test_tokens_become_a_map_row_by_row_and_tokens_again():
    tokens = torch.randn(2, 3, 24)
    laid_out = arrange(tokens, (8, 12))
    assert laid_out.shape == (2, 3, 4, 6)
    assert torch.equal(laid_out[:, :, 1, 0], tokens[:, :, 6])
    assert torch.equal(arrange(laid_out, (24,)), tokens)


@pytest.mark.parametrize(
    ("shape", "positions"), [((2, 3, 25), (4, 6)), ((2, 3, 4, 6), (25,)), ((2, 3, 4, 6), (2, 2, 2))]
)
def test_what_cannot_be_laid_out_is_refused(shape, positions):
    with pytest.raises(RecipeError, match="cannot be laid out"):
        arrange(torch.zeros(shape), positions)
    with pytest.raises(RecipeError, match="a projector maps"):
        Projector(torch.Size(shape), torch.Size((2, 3, *positions)))


def test_the_larger_meets_the_smaller_in_each_dimension():
    student, target = meet(torch.randn(2, 3, 8, 2), torch.randn(2, 5, 4, 6))
    assert student.shape == (2, 3, 4, 2)
    assert target.shape == (2, 5, 4, 2)


def test_a_vector_is_met_by_an_average():
    student, target = meet(torch.randn(2, 3, 8), torch.randn(2, 5))
    assert student.shape == (2, 3)
    assert target.shape == (2, 5)


SHORT = st.integers(1, 5)


@st.composite
def shapes(draw):
    """Two shapes that can meet: as many positions in both, or none in the second."""
    positions = draw(st.integers(0, 3))
    given_shape = [draw(SHORT) for _ in range(2 + positions)]
    wanted_positions = draw(st.sampled_from([0, positions]))
    return given_shape, [draw(SHORT) for _ in range(2 + wanted_positions)]


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(1, 3))
def test_a_projector_reaches_the_wanted_shape_for_any_batch(pair, batch):
    given_shape, wanted = pair
    project = Projector(torch.Size(given_shape), torch.Size(wanted))
    features = torch.randn(batch, *given_shape[1:], requires_grad=True)
    projected = project(features)
    assert projected.shape == (batch, *wanted[1:])
    projected.sum().backward()
    assert features.grad.isfinite().all()
    assert project.channels.weight.grad is not None


@pytest.mark.parametrize(
    ("given_shape", "wanted"),
    [
        ((2,), (2, 3)),
        ((2, 3), (2, 3, 4)),
        ((2, 3, 4), (2, 3, 4, 5)),
        ((2, 3, 4, 5), (2, 3, 4)),
        ((2,) * 6, (2,) * 6),
        ((2, 3), (2,)),
    ],
)
def test_shapes_that_cannot_meet_are_refused(given_shape, wanted):
    with pytest.raises(RecipeError, match="a projector maps"):
        Projector(torch.Size(given_shape), torch.Size(wanted))


def test_channels_are_mapped_at_every_position_alike():
    project = Projector(torch.Size((1, 3, 4)), torch.Size((1, 2, 4)))
    features = torch.randn(2, 3, 4)
    expected = torch.stack([project.channels(features[:, :, place]) for place in range(4)], dim=-1)
    torch.testing.assert_close(project(features), expected)


def test_positions_are_averaged_away_for_a_vector():
    features = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(resize(features, ()), features.mean((2, 3)))


def test_positions_shrink_by_averaging():
    features = torch.tensor([[[1.0, 3.0, 5.0, 7.0]]])
    assert resize(features, (2,)).tolist() == [[[2.0, 6.0]]]


def test_positions_grow_by_interpolation():
    features = torch.tensor([[[0.0, 4.0]]])
    assert resize(features, (4,)).tolist() == [[[0.0, 1.0, 3.0, 4.0]]]


@pytest.mark.parametrize("positions", [(8,), (4, 9), (2, 3, 7)])
def test_a_constant_stays_constant_whatever_its_positions_become(positions):
    features = torch.full((1, 2, *([4] * len(positions))), 3.0)
    torch.testing.assert_close(resize(features, positions), torch.full((1, 2, *positions), 3.0))


def test_features_of_the_right_size_are_left_alone():
    features = torch.randn(2, 3, 4)
    assert resize(features, (4,)) is features
