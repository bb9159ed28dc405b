"""Missing values are recognised in the words of several programs."""

import pytest

from kdkit import DataError
from kdkit_ecg.utils.messages import first_names
from kdkit_ecg.utils.tables import is_missing, patient_name, read_table


@pytest.mark.parametrize(
    "text", ["", " ", "nan", "NaN", "NA", "n/a", "None", "NULL", "Unknown ", "<NA>", "NaT", "?", "-"]
)
def test_words_for_a_missing_value_are_missing(text):
    assert is_missing(text)


@pytest.mark.parametrize("text", ["0", "P1", "Nana", "unknown person 3", "-1", "x"])
def test_other_texts_are_values(text):
    assert not is_missing(text)


@pytest.mark.parametrize(
    ("text", "name"), [("7.0", "7"), ("0007", "7"), ("00", "0"), ("P07", "P07"), ("0.7", "0.7"), ("1.0.0", "1.0.0")]
)
def test_a_number_of_a_patient_is_the_same_in_every_program(text, name):
    assert patient_name(text) == name


def test_three_names_are_listed_and_dots_if_there_are_more():
    assert first_names(["a", "b"]) == "a, b"
    assert first_names(["a", "b", "c", "d"]) == "a, b, c, ..."


def test_a_line_with_more_cells_than_columns_is_refused_unless_they_are_empty(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("record,label,patient\nr1,AF,P1,, \nr2,AF\n")
    assert [cells["patient"] for _, cells in read_table(path).rows] == ["P1", ""]
    path.write_text("record,label,patient\nr1,Sinus rhythm, normal,P1\n")
    with pytest.raises(DataError, match=r"labels.csv, line 2, has 4 cells, but .* 3 columns; put quotes around"):
        read_table(path)


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"test_a_table.* cannot be read: Is a directory"):
        read_table(tmp_path)
