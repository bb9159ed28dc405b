"""SNOMED CT codes are recognised, and mapped to the scored classes of a year."""

import numpy as np
import pytest

from kdkit import RecipeError
from kdkit_ecg.labels import NORMAL, is_snomed_code, scored_classes


@pytest.mark.parametrize(("year", "count"), [(2020, 24), (2021, 26)])
def test_each_year_has_its_number_of_classes_with_unique_names(year, count):
    classes = scored_classes(year)
    assert len(classes.codes) == len(set(classes.codes)) == len(set(classes.names)) == count
    assert classes.row([NORMAL]).sum() == 1


@pytest.mark.parametrize(
    ("first", "second"), [("713427006", "59118001"), ("284470004", "63593006"), ("427172004", "17338001")]
)
@pytest.mark.parametrize("year", [2020, 2021])
def test_equivalent_codes_are_one_class(year, first, second):
    classes = scored_classes(year)
    row = classes.row([first, second])
    assert row.sum() == 1
    assert np.array_equal(row, classes.row([second]))
    assert classes.codes[int(row.argmax())] == first


def test_complete_left_bundle_branch_block_is_scored_only_in_2021():
    assert scored_classes(2020).row(["733534002"]).sum() == 0
    assert scored_classes(2021).names[int(scored_classes(2021).row(["733534002"]).argmax())] == "CLBBB"


def test_a_row_is_float32_and_unknown_codes_are_ignored():
    row = scored_classes(2020).row(["428750005", "not a code"])
    assert row.dtype == np.float32
    assert not row.any()


def test_a_year_without_a_table_is_refused():
    with pytest.raises(RecipeError, match="2020 or 2021, got 2019"):
        scored_classes(2019)


def test_every_scored_code_has_a_valid_check_digit_and_a_changed_one_has_not():
    for code in {**scored_classes(2020).columns, **scored_classes(2021).columns}:
        assert is_snomed_code(code)
        assert not any(is_snomed_code(code[:-1] + digit) for digit in "0123456789" if digit != code[-1])
        # Verhoeff's check digit also detects every exchange of two neighbouring digits.
        swapped = code[:2] + code[3] + code[2] + code[4:]
        assert is_snomed_code(swapped) == (swapped == code)
