"""The tables of docs/compatibility.md are complete, and name tests that exist."""

from pathlib import Path

import pytest

from tests.helpers.pages import is_defined, named_tests, tables

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
HEADER = ["what", "works", "how"]
TABLES = tables(PAGE)
ROWS = [row for _header, rows in TABLES for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_complete_and_names_a_test(row):
    _, works, how = row  # three cells
    assert works in ("yes", "no", "partly")
    (name,) = named_tests(how)
    assert how.removesuffix(f"<!-- {name} -->")
    assert is_defined(name)


def test_there_are_many_rows_without_duplicates():
    assert len(ROWS) >= 40
    names = [row[0] for row in ROWS]
    assert len(set(names)) == len(names)
    tests = [named_tests(row[-1])[0] for row in ROWS]
    assert len(set(tests)) == len(tests)


def test_each_heading_has_one_table():
    assert [header for header, _rows in TABLES] == [HEADER] * PAGE.count("\n## ")
