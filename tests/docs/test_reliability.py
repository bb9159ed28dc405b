"""The tables of docs/reliability.md name tests that exist."""

from pathlib import Path

import pytest

from tests.helpers.pages import is_defined, named_tests, tables

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
ROWS = [row for _header, rows in tables(PAGE) for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_promise_names_a_test(row):
    (name,) = named_tests(row[-1])
    assert is_defined(name)


def test_there_is_a_table_of_faults_and_one_of_threats():
    assert len(tables(PAGE)) == 2
