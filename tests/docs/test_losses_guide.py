"""The guide of docs/losses.md names registered losses and existing tests, and its weights agree."""

import re
from pathlib import Path

import pytest

import kdkit
from kdkit import losses
from tests.helpers.pages import is_defined, named_tests, tables

GUIDE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8").split("\n## Notation\n")[0]
REGISTERED = kdkit.registry("losses")
BUILT_IN = {name for name in REGISTERED if REGISTERED.plugin(name) == "kdkit"}
SITUATION = ["situation", "losses", "why", "start weight"]
WEIGHT = ["loss", "weight", "source"]
DIFFERENCE = ["loss", "public code", "what it does", "kdkit"]


def rows(header):
    return [row for columns, table in tables(GUIDE) if columns == header for row in table]


def names_in(cell):
    """Return the names in a cell that has nothing but names."""
    names = re.findall(r"`(\w+)`", cell)
    assert cell == ", ".join(f"`{name}`" for name in names)
    return names


def test_each_table_has_one_of_three_headers():
    headers = [header for header, _rows in tables(GUIDE)]
    assert headers == [SITUATION] * 3 + [WEIGHT, DIFFERENCE]


@pytest.mark.parametrize("row", rows(SITUATION), ids=lambda row: row[0])
def test_a_situation_names_registered_losses_and_a_weight_for_all_or_for_each(row):
    _situation, names, why, weights = row
    assert set(names_in(names)) <= BUILT_IN
    assert why
    assert len(weights.split(", ")) in (1, len(names_in(names)))
    assert all(float(weight) > 0 for weight in weights.split(", "))


def test_each_registered_loss_is_recommended_for_a_situation():
    assert {name for row in rows(SITUATION) for name in names_in(row[1])} == BUILT_IN


def test_start_weights_are_those_of_the_papers_or_one():
    of_papers = {name: float(weight) for cell, weight, _source in rows(WEIGHT) for name in names_in(cell)}
    assert set(of_papers) <= BUILT_IN
    for _situation, cell, _why, weights in rows(SITUATION):
        names, numbers = names_in(cell), [float(weight) for weight in weights.split(", ")]
        numbers = numbers * len(names) if len(numbers) == 1 else numbers
        for name, weight in zip(names, numbers, strict=True):
            assert weight == of_papers.get(name, 1.0), name


@pytest.mark.parametrize("row", rows(DIFFERENCE), ids=lambda row: row[0] + row[2][:30])
def test_a_difference_is_complete_and_names_a_test(row):
    names, *cells = row
    assert set(names_in(names)) <= BUILT_IN
    (name,) = named_tests(cells[-1])
    cells[-1] = cells[-1].removesuffix(f"<!-- {name} -->")
    assert len(cells) == 3
    assert all(cells)
    assert is_defined(name)


def test_each_test_of_public_code_is_named_by_one_difference():
    named = [named_tests(row[-1])[0] for row in rows(DIFFERENCE)]
    assert len(set(named)) == len(named)
    assert all(is_defined(name) for name in named)
    text = (Path(__file__).parents[1] / "parity" / "test_public_code.py").read_text()
    defined = {f"parity/test_public_code.py::{name}" for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    assert defined <= set(named)


def test_classes_of_losses_in_the_guide_exist():
    named = set(re.findall(r"\b(?:Per[A-Z]\w+|Masked|SecondHead|SoftTargets|OFA)(?=\()", GUIDE))
    assert named <= set(losses.__all__)
    assert "PerTeacher" in named
