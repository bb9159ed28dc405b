"""Ramps: factors that are constant, change between two points of progress, and are constant again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdkit import CosineRamp, LinearRamp, RecipeError

RAMPS = [LinearRamp, CosineRamp]


@pytest.mark.parametrize("ramp_class", RAMPS)
def test_a_ramp_is_constant_before_and_after(ramp_class):
    ramp = ramp_class(start=2, end=6, after=0.25, until=0.75)
    assert [ramp(0), ramp(0.25), ramp(0.75), ramp(1)] == pytest.approx([2, 2, 6, 6])


@pytest.mark.parametrize("ramp_class", RAMPS)
def test_a_ramp_has_the_mean_of_its_ends_in_the_middle(ramp_class):
    assert ramp_class(start=2, end=6, after=0.25, until=0.75)(0.5) == pytest.approx(4)


def test_a_linear_ramp_is_straight_and_a_cosine_ramp_starts_slowly():
    assert LinearRamp()(0.25) == pytest.approx(0.25)
    assert CosineRamp()(0.25) == pytest.approx((1 - 2**-0.5) / 2)  # cos(pi / 4) = 1 / sqrt(2)


@pytest.mark.parametrize("ramp_class", RAMPS)
@settings(deadline=None)
@given(st.floats(0, 9), st.floats(0, 9), st.floats(0, 1), st.floats(0, 1))
def test_a_ramp_is_monotonic_and_stays_between_its_ends(ramp_class, start, end, first, second):
    ramp = ramp_class(start=start, end=end)
    earlier, later = ramp(min(first, second)), ramp(max(first, second))
    rounding = 1e-9
    assert min(start, end) - rounding <= earlier <= max(start, end) + rounding
    assert (later - earlier) * (end - start) >= -rounding  # the ramp changes in the direction of its end


@pytest.mark.parametrize("ramp_class", RAMPS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, r"a ramp must change between finite factors of at least 0; got -1 to 1\.0"),
        ({"end": float("nan")}, "a ramp must change between finite factors"),
        ({"end": float("inf")}, "a ramp must change between finite factors"),
        ({"start": "1"}, r"a ramp must change between finite factors of at least 0; got '1' to 1\.0"),
        ({"until": None}, "a ramp must have 0 <= after < until <= 1; got after=0.0, until=None"),
        ({"after": 0.5, "until": 0.5}, r"a ramp must have 0 <= after < until <= 1; got after=0\.5, until=0\.5"),
        ({"after": 0.8, "until": 0.2}, "a ramp must have 0 <= after < until <= 1"),
        ({"after": -0.1}, "a ramp must have 0 <= after < until <= 1"),
        ({"until": 1.1}, "a ramp must have 0 <= after < until <= 1"),
        ({"until": float("nan")}, "a ramp must have 0 <= after < until <= 1"),
    ],
)
def test_invalid_options_of_a_ramp_are_refused(ramp_class, options, message):
    with pytest.raises(RecipeError, match=message):
        ramp_class(**options)


def test_ramps_with_the_same_options_are_equal():
    assert LinearRamp(end=2) == LinearRamp(end=2) != LinearRamp(end=3)
