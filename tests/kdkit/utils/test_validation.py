"""Tests of the checks that options of a recipe share."""

import math
import re
from typing import Literal

import numpy as np
import pytest

from kdkit.errors import RecipeError
from kdkit.utils import validation
from kdkit.utils.validation import is_number, is_whole_number


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int64(3)])
def test_finite_real_numbers_are_numbers(value):
    assert is_number(value)


@pytest.mark.parametrize("value", [True, math.nan, math.inf, "1", None, 1j])
def test_other_values_are_no_numbers(value):
    assert not is_number(value)


@pytest.mark.parametrize(("value", "is_whole"), [(0, True), (np.int64(3), True), (True, False), (1.0, False)])
def test_integers_are_whole_numbers_and_bools_and_floats_are_none(value, is_whole):
    assert is_whole_number(value) is is_whole
    assert not is_whole_number(np.bool_(True))


@pytest.mark.parametrize(
    ("name", "value", "options", "text"),
    [
        ("validate_above_zero", 0, {}, "x must be a finite number above 0; got 0"),
        ("validate_at_least_zero", -1, {}, "x must be a finite number of at least 0; got -1"),
        ("validate_count", 0, {}, "x must be an integer of at least 1; got 0"),
        ("validate_count", None, {}, "x must be an integer of at least 1; got None"),
        ("validate_count", 1, {"least": 2, "optional": True}, "x must be an integer of at least 2 or None; got 1"),
        ("validate_share", 1.5, {}, r"x must be a number in \[0, 1\]; got 1.5"),
        ("validate_share", 1, {"below_one": True}, r"x must be a number in \[0, 1\); got 1"),
        ("validate_choice", "c", {"choices": Literal["a", "b"]}, "x must be 'a' or 'b'; got 'c'"),
    ],
)
def test_an_invalid_value_raises_with_the_expected_and_the_actual_value(name, value, options, text):
    with pytest.raises(RecipeError, match=f"^{text}$"):
        getattr(validation, name)("x", value, **options)


def test_valid_values_pass():
    validation.validate_above_zero("x", 1e-9)
    validation.validate_at_least_zero("x", 0)
    validation.validate_count("x", None, optional=True)
    validation.validate_count("x", 0, least=0)
    validation.validate_share("x", 1)
    validation.validate_choice("x", "a", Literal["a", "b"])
    validation.validate_switches(x=True)


@pytest.mark.parametrize(
    "name", ["con", "AUX", "com1", "nul.net", "net ", " net", "net.", ".net", "a..b", "a:b", "a?b"]
)
def test_a_name_that_no_file_may_have_on_windows_is_refused(name):
    with pytest.raises(RecipeError, match=f"the name of a net .*; got {re.escape(repr(name))}$"):
        validation.validate_name("net", name, "-_+ ")


@pytest.mark.parametrize("name", ["connor", "auxiliary", "com", "a net", "2.5"])
def test_other_names_are_those_of_files(name):
    validation.validate_name("net", name, "-_+ ")


def test_a_text_is_no_switch():
    with pytest.raises(RecipeError, match=r"^deep must be True or False; got 'no'$"):
        validation.validate_switches(deep="no")
