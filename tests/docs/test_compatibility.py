"""The tables of docs/compatibility.md are complete, and name tests that exist."""

import ast
import functools
import re
from pathlib import Path

import pytest

import kdkit

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "compatibility.md").read_text()
HEADER = ["what", "works", "how", "since", "test"]
# A cell may have an escaped bar.
TABLE = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in PAGE.splitlines() if line[:1] == "|"]
ROWS = [row for row in TABLE if row != HEADER and not set(row[0]) <= {"-"}]


@functools.cache
def functions_of(path):
    """Return the names of the test functions of a file, which is not imported."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def numbers_of(version):
    return [int(number) for number in re.match(r"(\d+)\.(\d+)\.(\d+)", version).groups()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_complete_and_names_a_test(row):
    _, works, how, since, test = row  # five cells
    assert how
    assert works in ("yes", "no", "partly")
    assert numbers_of(since) <= numbers_of(kdkit.__version__)
    (name,) = re.findall(r"^`([\w/]+\.py::test_\w+)`$", test)
    file, function = name.split("::")
    assert function in functions_of(TESTS / file)


def test_there_are_many_rows_without_duplicates():
    assert len(ROWS) >= 40
    names = [row[0] for row in ROWS]
    assert len(set(names)) == len(names)
    tests = [row[-1] for row in ROWS]
    assert len(set(tests)) == len(tests)


def test_each_heading_has_one_table():
    assert TABLE.count(HEADER) == PAGE.count("\n## ")
