"""The table of docs/lrhnet.md on the protocol of the LRH-Net paper agrees with the options in the code."""

import re
from ast import literal_eval
from inspect import signature
from pathlib import Path

import pytest

import kdkit
import kdkit_ecg
from kdkit_ecg.datasets.challenge import PAPER

PAGE = (Path(__file__).parents[2] / "docs" / "lrhnet.md").read_text()
ROWS = re.findall(r"^\|[^|]*\| `(\w+)\((\w+)=\)` \| `([^`]*)` \| `([^`]*)` \|$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize(("name", "option", "default", "paper"), ROWS, ids=[".".join(row[:2]) for row in ROWS])
def test_each_row_has_the_default_and_the_paper_value_of_its_option(name, option, default, paper):
    owner = getattr(kdkit_ecg, name, None) or getattr(kdkit.losses, name)
    assert signature(owner).parameters[option].default == literal_eval(default)
    assert literal_eval(default) != literal_eval(paper)
    if name == "Challenge2020":
        assert PAPER[option] == literal_eval(paper)
    else:
        owner(**{option: literal_eval(paper)})  # the option accepts the value


def test_the_table_contains_every_option_of_the_paper_protocol():
    assert {option for name, option, *_ in ROWS if name == "Challenge2020"} == set(PAPER)
    assert len(ROWS) == len(PAPER) + 3
