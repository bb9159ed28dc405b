"""Missing values are recognised in the words of several programs."""

import pytest

from kdkit import DataError
from kdkit_ecg.utils.messages import first_names
from kdkit_ecg.utils.tables import is_missing, read_table


@pytest.mark.parametrize(
    "text", ["", " ", "nan", "NaN", "NA", "n/a", "None", "NULL", "Unknown ", "<NA>", "NaT", "?", "-"]
)
def test_words_for_a_missing_value_are_missing(text):
    assert is_missing(text)


@pytest.mark.parametrize("text", ["0", "P1", "Nana", "unknown person 3", "-1", "x"])
def test_other_texts_are_values(text):
    assert not is_missing(text)


def test_three_names_are_listed_and_dots_if_there_are_more():
    assert first_names(["a", "b"]) == "a, b"
    assert first_names(["a", "b", "c", "d"]) == "a, b, c, ..."


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"test_a_table.* cannot be read: Is a directory"):
        read_table(tmp_path)
