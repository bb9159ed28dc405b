"""SNOMED CT codes become the scored classes of a year."""

import numpy as np
import pytest

from kdkit import RecipeError
from kdkit_ecg.labels import NORMAL, scored_classes


@pytest.mark.parametrize(("year", "count"), [(2020, 24), (2021, 26)])
def test_each_year_has_its_classes_with_names_of_their_own(year, count):
    classes = scored_classes(year)
    assert len(classes) == len(classes.codes) == len(set(classes.codes)) == len(set(classes.names)) == count
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


def test_complete_left_bundle_branch_block_is_scored_in_2021_alone():
    assert scored_classes(2020).row(["733534002"]).sum() == 0
    assert scored_classes(2021).names[int(scored_classes(2021).row(["733534002"]).argmax())] == "CLBBB"


def test_a_row_is_float32_and_unknown_codes_add_nothing():
    row = scored_classes(2020).row(["428750005", "not a code"])
    assert row.dtype == np.float32
    assert not row.any()


def test_a_year_without_a_table_is_refused():
    with pytest.raises(RecipeError, match="not those of 2019"):
        scored_classes(2019)
