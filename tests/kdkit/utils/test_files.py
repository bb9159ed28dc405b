"""Tests of writing values as JSON; atomic writes are tested with the run folder."""

import json
import math

from kdkit.utils.files import nulls_to_nan, to_json


def test_numbers_that_are_not_finite_are_null_in_json_and_nan_when_read():
    text = to_json({"a": math.nan, "b": [1.5, math.inf], "c": ("x", None)})
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": ["x", None]}
    values = nulls_to_nan(json.loads(text))
    assert math.isnan(values["a"])
    assert values["b"][0] == 1.5
    assert math.isnan(values["b"][1])
    assert values["c"][0] == "x"
