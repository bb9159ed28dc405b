"""Differences of two values and numbers of bytes are shown as short texts."""

import pytest

from kdkit.utils.reprs import differing, distinct_notes, format_bytes, with_names


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}, ({"b": 2, "c": None}, {"b": 3, "c": 4})),
        (["f(x=1, y=2, z=3)"] * 2, ["f(x=1, y=4, z=3)"] * 2, (["y=2"], ["y=4"])),
        ("f(x=1, y=2)", "f(x=1, y=2, z=3)", ("y=2", "y=2, z=3")),
        ("f(x=1, y=g(z=2))", "f(x=3, y=g(z=2))", ("f(x=1)", "f(x=3)")),
        ("f(x=1, y=g(z=2, u=(1,)))", "f(x=1, y=g(z=3, u=(1,)))", ("y=g(z=2)", "y=g(z=3)")),
        ("f(x=1, y=g(z=2))", "f(x=1, y=h(z=2))", ("y=g(z=2)", "y=h(z=2)")),
        ("f(x=g(y=1, z=2), u=3)", "f(x=g(y=1, z=4), u=5)", ("z=2), u=3", "z=4), u=5")),
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


class Warm:
    pass


def test_a_note_that_several_results_share_is_listed_once():
    notes = ["no positives: AF", "", "no positives: AF; accuracy is worse", "intervals: 95%"]
    assert distinct_notes(notes) == ["no positives: AF", "accuracy is worse", "intervals: 95%"]


def test_functions_and_objects_have_their_names_instead_of_addresses():
    def scores():
        pass

    assert with_names(f"Masked({scores!r}, k={pytest.approx!r}, {Warm()!r})") == "Masked(scores, k=approx, Warm)"
    assert with_names(repr(lambda: 0)) == "<lambda>"
    assert with_names("Adam(lr=0.1)") == "Adam(lr=0.1)"


@pytest.mark.parametrize(
    ("count", "base", "text"),
    [
        (0, 1000, "0 B"),
        (512, 1024, "512 B"),
        (1023, 1024, "1023 B"),
        (1536, 1024, "1.5 kB"),
        (999_960, 1000, "1000 kB"),
        (1_234_000, 1000, "1.23 MB"),
        (2.5e9, 1000, "2.5 GB"),
        (5e13, 1000, "50000 GB"),
    ],
)
def test_a_number_of_bytes_is_formatted_with_three_digits_and_its_unit(count, base, text):
    assert format_bytes(count, base=base) == text
