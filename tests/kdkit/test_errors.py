"""Tests of the error classes and of the texts that error messages share."""

import pickle

import pytest

from kdkit import errors
from kdkit.errors import CheckError, KdkitError, describe, did_you_mean, first_line


def test_one_class_catches_every_error_of_kdkit():
    classes = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert len(classes) > 4
    assert all(issubclass(cls, KdkitError) for cls in classes if not issubclass(cls, Warning))


def test_a_check_error_shows_each_problem_on_its_own_line():
    error = CheckError(["the first", "the second"])
    assert error.problems == ("the first", "the second")
    assert str(error).splitlines() == ["2 problems found before the first step:", "  - the first", "  - the second"]


def test_a_check_error_has_a_singular_title_for_one_problem():
    assert str(CheckError(iter(["only"]))).startswith("1 problem found")


def test_a_check_error_survives_pickling():
    error = pickle.loads(pickle.dumps(CheckError(["the first", "the second"])))
    assert error.problems == ("the first", "the second")


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("a\nb"), "a"), (ValueError(), "ValueError"), (KeyError(), "KeyError")]
)
def test_the_first_line_of_an_error_is_its_message_or_its_class(error, line):
    assert first_line(error) == line


def test_a_class_is_described_with_a_hint_to_call_it_and_a_value_by_its_repr():
    assert describe(dict) == "the class dict; did you forget its ()?"
    assert describe("text") == "'text'"


@pytest.mark.parametrize(
    ("wrong", "names", "hint"),
    [
        ("soft_target", ["hint", "soft_targets"], "did you mean 'soft_targets'?"),
        ("zzz", ["hint", "cosine"], "there are: cosine, hint"),
        ("zzz", [], "there are none"),
    ],
)
def test_the_hint_for_an_unknown_name_is_the_nearest_name_or_all_names(wrong, names, hint):
    assert did_you_mean(wrong, iter(names)) == hint


def test_a_message_of_a_library_that_holds_a_whole_file_is_cut():
    assert first_line(ValueError("x" * 10**6)) == "x" * 500 + "..."
