"""What differs between two values is shown without the rest of them."""

import pytest

from kdkit.utils.reprs import differing


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}, ({"b": 2, "c": None}, {"b": 3, "c": 4})),
        (["f(x=1, y=2, z=3)"] * 2, ["f(x=1, y=4, z=3)"] * 2, (["y=2"], ["y=4"])),
        ("f(x=1, y=2)", "f(x=1, y=2, z=3)", ("y=2)", "y=2, z=3)")),
        ("f(x)", "f(x), f(x)", ("", "f(x)")),
        (["a"], ["a", "b"], (["a"], ["a", "b"])),
        (
            {"nets": {"t": {"n": 1, "m": 2}}},
            {"nets": {"t": {"n": 3, "m": 2}}},
            ({"nets": {"t": {"n": 1}}}, {"nets": {"t": {"n": 3}}}),
        ),
        (1, "1", (1, "1")),
        ({}, {}, ({}, {})),
    ],
)
def test_only_what_differs_is_kept(first, second, expected):
    assert differing(first, second) == expected
