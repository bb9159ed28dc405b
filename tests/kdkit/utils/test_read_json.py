"""The values in a JSON file that anyone may have edited: each has the expected type, or a default, or is refused."""

import math

import pytest

from kdkit.utils.read_json import mapping, number_or, number_or_nan, require_number, rows, whole_number

HUGE = 10**400  # JSON allows it, but no float holds it


@pytest.mark.parametrize("value", [None, True, "1", [1], {}, HUGE, math.nan, math.inf])
def test_a_value_that_is_not_a_finite_number_becomes_the_default(value):
    assert number_or(value, 7.0) == 7.0
    assert number_or(2, 7.0) == 2.0


@pytest.mark.parametrize("value", [None, True, "1", [1], {}, HUGE])
def test_a_value_that_must_be_a_number_is_refused(value):
    with pytest.raises(ValueError, match=r"expected a number, got a|a number is too large"):
        require_number(value)


def test_null_is_nan_if_a_number_may_be_undefined():
    assert math.isnan(number_or_nan(None))
    assert number_or_nan(3) == 3.0


@pytest.mark.parametrize("value", [None, 3, "text", [3], {"a": 1}, [{"a": 1}, 3], True])
def test_values_of_another_type_in_a_record_count_as_missing(value):
    record = {"key": value}
    assert mapping(record, "key") == (value if isinstance(value, dict) else {})
    assert rows(record, "key") == ([{"a": 1}] if value == [{"a": 1}, 3] else [])
    assert whole_number(record, "key") == (3 if value == 3 else None)
    assert (mapping(record, "other"), rows(record, "other"), whole_number(record, "other")) == ({}, [], None)
