"""Read the tables of a page of the docs, and find the tests that it names."""

import ast
import functools
import re
from itertools import groupby
from pathlib import Path

TESTS = Path(__file__).parents[1]


def tables(text):
    """Return the tables of a text, a header and a list of rows each, as lists of cells."""
    groups = groupby(text.splitlines(), key=lambda line: line.startswith("|"))
    return [_table(lines) for is_table, lines in groups if is_table]


def named_tests(cell):
    """Return the tests that comments in a cell name, such as <!-- docs/test_docs.py::test_name -->, below tests/."""
    return re.findall(r"<!-- ([\w/]+\.py::test_\w+) -->", cell)


def is_defined(test):
    """Return whether there is a test of this name, file and function."""
    file, function = test.split("::")
    return function in _functions_of(TESTS / file)


def _table(lines):
    # a cell may have an escaped bar
    header, _dashes, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return header, rows


@functools.cache
def _functions_of(path):
    """Return the names of the functions of a file, which is not imported."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
