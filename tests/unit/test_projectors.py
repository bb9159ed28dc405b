"""Projectors: any shape to any other of as many dimensions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdkit import RecipeError
from kdkit.projectors import Projector, resize

SIZES = st.integers(1, 5)


@st.composite
def shapes(draw):
    """Two shapes that can meet: as many positions in both, or none in the second."""
    positions = draw(st.integers(0, 3))
    given_shape = [draw(SIZES) for _ in range(2 + positions)]
    wanted_positions = draw(st.sampled_from([0, positions]))
    return given_shape, [draw(SIZES) for _ in range(2 + wanted_positions)]


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
