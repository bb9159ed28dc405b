"""Projectors: all kinds reach the target's shape, tokens become maps and back, and positions are resized."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdkit import RecipeError
from kdkit.losses.projectors import (
    PROJECTORS,
    BatchNorm,
    Pointwise,
    Projector,
    Regressor,
    make_projector,
    match_positions,
    rearrange_tokens,
    resize,
)


@pytest.mark.parametrize("kind", PROJECTORS)
@pytest.mark.parametrize(
    ("input_shape", "target_shape"),
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
def test_every_kind_reaches_the_target_shape_and_is_trained(kind, input_shape, target_shape):
    projector = make_projector(kind, torch.Size(input_shape), torch.Size(target_shape))
    for batch in (3, 1):
        projected = projector(torch.randn(batch, *input_shape[1:]))
        assert projected.shape == (batch, *target_shape[1:])
    projected.square().sum().backward()
    assert all(weight.grad is not None for weight in projector.parameters())


SIZES = st.integers(1, 9)
POSITIONS = st.integers(0, 3).flatmap(lambda count: st.tuples(*[st.lists(SIZES, min_size=count, max_size=count)] * 2))


@settings(max_examples=60, deadline=None)
@given(POSITIONS, SIZES, SIZES, st.sampled_from(list(PROJECTORS)))
def test_any_positions_are_projected_to_any_others(positions, input_channels, target_channels, kind):
    shapes = torch.Size((2, input_channels, *positions[0])), torch.Size((2, target_channels, *positions[1]))
    assert make_projector(kind, *shapes)(torch.randn(shapes[0])).shape == shapes[1]


@pytest.mark.parametrize(
    ("input_positions", "target_positions", "kernel"),
    [((14,), (12,), (3,)), ((7, 6), (5, 4), (3, 3)), ((5,), (5,), (1,)), ((100,), (7,), (3,)), ((5,), (7,), (3,))],
)
def test_the_kernel_of_a_regressor_fits_the_shrinking_of_positions(input_positions, target_positions, kernel):
    regressor = Regressor(torch.Size((2, 3, *input_positions)), torch.Size((2, 5, *target_positions)))
    assert regressor.conv.kernel_size == kernel


def test_a_regressor_without_relu_may_be_negative():
    shapes = torch.Size((2, 3, 8)), torch.Size((2, 5, 6))
    assert (Regressor(*shapes)(torch.randn(2, 3, 8)) >= 0).all()
    assert (Regressor(*shapes, relu=False)(torch.randn(2, 3, 8)) < 0).any()


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 2), (4, 3, 2, 2, 2)])
def test_batch_norm_takes_any_number_of_dimensions(shape):
    features = torch.randn(shape) * 3 + 1
    normed = BatchNorm(3)(features).transpose(0, 1).flatten(1)
    torch.testing.assert_close(normed.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(normed.std(1, correction=0), torch.ones(3), rtol=0, atol=1e-3)


def test_batch_norm_of_a_single_value_uses_the_running_statistics():
    norm, features = BatchNorm(3), torch.randn(1, 3)
    torch.testing.assert_close(norm(features), norm.eval()(features))


def test_a_pointwise_map_equals_a_convolution_with_kernel_one():
    linear, convolution = Pointwise(3, 2), nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        convolution.weight.copy_(linear.weight[:, :, None, None])
        convolution.bias.copy_(linear.bias)
    features = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(linear(features), convolution(features))


def test_tokens_become_a_map_row_by_row_and_tokens_again():
    tokens = torch.randn(2, 3, 24)
    map_features = rearrange_tokens(tokens, (8, 12))
    assert map_features.shape == (2, 3, 4, 6)
    assert torch.equal(map_features[:, :, 1, 0], tokens[:, :, 6])
    assert torch.equal(rearrange_tokens(map_features, (24,)), tokens)


def test_positions_that_were_averaged_before_the_projector_are_refused_with_the_remedy():
    projector = Projector(torch.Size((2, 3, 4, 4)), torch.Size((2, 5, 4, 4)))
    with pytest.raises(RecipeError, match=r"expected features with positions, .*; got \(2, 3\); average .* after the"):
        projector(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("shape", "positions"), [((2, 3, 25), (4, 6)), ((2, 3, 4, 6), (25,)), ((2, 3, 4, 6), (2, 2, 2))]
)
def test_positions_that_cannot_be_rearranged_are_refused(shape, positions):
    with pytest.raises(RecipeError, match="cannot be rearranged"):
        rearrange_tokens(torch.zeros(shape), positions)
    with pytest.raises(RecipeError, match="a projector maps"):
        Projector(torch.Size(shape), torch.Size((2, 3, *positions)))


def test_the_larger_is_pooled_to_the_smaller_in_each_dimension():
    student, target = match_positions(torch.randn(2, 3, 8, 2), torch.randn(2, 5, 4, 6))
    assert student.shape == (2, 3, 4, 2)
    assert target.shape == (2, 5, 4, 2)


def test_positions_are_averaged_to_match_a_vector():
    student, target = match_positions(torch.randn(2, 3, 8), torch.randn(2, 5))
    assert student.shape == (2, 3)
    assert target.shape == (2, 5)


SHORT = st.integers(1, 5)


@st.composite
def shapes(draw):
    """Draw an input shape and a target shape: as many positions in both, or none in the target."""
    positions = draw(st.integers(0, 3))
    input_shape = [draw(SHORT) for _ in range(2 + positions)]
    target_positions = draw(st.sampled_from([0, positions]))
    return input_shape, [draw(SHORT) for _ in range(2 + target_positions)]


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(1, 3))
def test_a_projector_reaches_the_target_shape_for_any_batch_size(pair, batch):
    input_shape, target_shape = pair
    projector = Projector(torch.Size(input_shape), torch.Size(target_shape))
    features = torch.randn(batch, *input_shape[1:], requires_grad=True)
    projected = projector(features)
    assert projected.shape == (batch, *target_shape[1:])
    projected.sum().backward()
    assert features.grad.isfinite().all()
    assert projector.channels.weight.grad is not None


@pytest.mark.parametrize(
    ("input_shape", "target_shape"),
    [
        ((2,), (2, 3)),
        ((2, 3), (2, 3, 4)),
        ((2, 3, 4), (2, 3, 4, 5)),
        ((2, 3, 4, 5), (2, 3, 4)),
        ((2,) * 6, (2,) * 6),
        ((2, 3), (2,)),
    ],
)
def test_unsupported_shapes_are_refused(input_shape, target_shape):
    with pytest.raises(RecipeError, match="a projector maps"):
        Projector(torch.Size(input_shape), torch.Size(target_shape))


def test_every_position_has_the_same_map_of_channels():
    projector = Projector(torch.Size((1, 3, 4)), torch.Size((1, 2, 4)))
    features = torch.randn(2, 3, 4)
    expected = torch.stack([projector.channels(features[:, :, position]) for position in range(4)], dim=-1)
    torch.testing.assert_close(projector(features), expected)


def test_empty_positions_average_over_all():
    features = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(resize(features, ()), features.mean((2, 3)))


def test_positions_shrink_by_averaging():
    features = torch.tensor([[[1.0, 3.0, 5.0, 7.0]]])
    assert resize(features, (2,)).tolist() == [[[2.0, 6.0]]]


def test_positions_grow_by_interpolation():
    features = torch.tensor([[[0.0, 4.0]]])
    assert resize(features, (4,)).tolist() == [[[0.0, 1.0, 3.0, 4.0]]]


@pytest.mark.parametrize("positions", [(8,), (4, 9), (2, 3, 7)])
def test_a_constant_stays_constant_for_any_new_positions(positions):
    features = torch.full((1, 2, *([4] * len(positions))), 3.0)
    torch.testing.assert_close(resize(features, positions), torch.full((1, 2, *positions), 3.0))


def test_features_of_the_right_size_are_returned_unchanged():
    features = torch.randn(2, 3, 4)
    assert resize(features, (4,)) is features
