"""Ramps: level, rising or falling, level."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit import CosineRamp, LinearRamp, RecipeError

RAMPS = [LinearRamp, CosineRamp]


@pytest.mark.parametrize("make", RAMPS)
def test_a_ramp_is_level_before_and_after(make):
    ramp = make(start=2, end=6, after=0.25, until=0.75)
    assert [ramp(0), ramp(0.25), ramp(0.75), ramp(1)] == pytest.approx([2, 2, 6, 6])


@pytest.mark.parametrize("make", RAMPS)
def test_a_ramp_is_half_way_in_the_middle(make):
    assert make(start=2, end=6, after=0.25, until=0.75)(0.5) == pytest.approx(4)


def test_a_linear_ramp_is_straight_and_a_cosine_ramp_starts_slowly():
    assert LinearRamp()(0.25) == pytest.approx(0.25)
    assert CosineRamp()(0.25) == pytest.approx((1 - 2**-0.5) / 2)


@pytest.mark.parametrize("make", RAMPS)
@given(st.floats(0, 9), st.floats(0, 9), st.floats(0, 1), st.floats(0, 1))
def test_a_ramp_never_leaves_its_ends_and_never_turns(make, start, end, first, second):
    ramp = make(start=start, end=end)
    earlier, later = ramp(min(first, second)), ramp(max(first, second))
    slack = 1e-9
    assert min(start, end) - slack <= earlier <= max(start, end) + slack
    assert (later - earlier) * (end - start) >= -slack


@pytest.mark.parametrize("make", RAMPS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"start": -1},
        {"end": float("nan")},
        {"end": float("inf")},
        {"after": 0.5, "until": 0.5},
        {"after": 0.8, "until": 0.2},
        {"after": -0.1},
        {"until": 1.1},
        {"until": float("nan")},
    ],
)
def test_a_ramp_that_makes_no_sense_is_refused(make, wrong):
    with pytest.raises(RecipeError, match="a ramp"):
        make(**wrong)


def test_ramps_with_the_same_settings_are_equal():
    assert LinearRamp(end=2) == LinearRamp(end=2) != LinearRamp(end=3)
