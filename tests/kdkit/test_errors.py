"""Errors: what they say, and that one class catches them all."""

import pytest

from kdkit import errors
from kdkit.errors import CheckError, KdkitError, did_you_mean


def test_one_class_catches_every_error_of_kdkit():
    raised = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    assert len(raised) > 4
    assert all(issubclass(each, KdkitError) for each in raised)


def test_a_check_error_shows_every_problem_on_a_line_of_its_own():
    error = CheckError(["the first", "the second"])
    assert error.problems == ("the first", "the second")
    assert str(error).splitlines() == ["2 problems found before the first step:", "  - the first", "  - the second"]


def test_a_check_error_counts_a_single_problem_as_one():
    assert str(CheckError(iter(["only"]))).startswith("1 problem found")


@pytest.mark.parametrize(
    ("wrong", "names", "said"),
    [
        ("soft_target", ["hint", "soft_targets"], "did you mean 'soft_targets'?"),
        ("zzz", ["hint", "cosine"], "there are: cosine, hint"),
        ("zzz", [], "there are none"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest_or_with_all(wrong, names, said):
    assert did_you_mean(wrong, iter(names)) == said
