"""The tables of docs/lrhnet.md are those of the published results and of docs/results."""

import pytest

from kdkit.errors import DataError
from kdkit.plugins.recipe_file import load_file
from tests.helpers.command_line import ROOT
from tests.helpers.pages import tables

tool = load_file(ROOT / "tools" / "make_lrhnet_page.py")


def test_the_tables_of_the_page_are_up_to_date():
    text = tool.PAGE.read_text("utf-8")
    assert tool.updated(text) == text, "run `python tools/make_lrhnet_page.py`"
    for name in tool.TABLES:
        assert f"<!-- table: {name} -->" in text


def test_the_intervals_are_those_of_the_page_of_results():
    ((_, rows),) = tables(tool.gains())
    results = (ROOT / "docs" / "results" / "distillation" / "simulated" / "effect.md").read_text("utf-8")
    for model, leads, _paper, simulated, _real in rows:
        difference, interval = simulated.removesuffix(")").split(" (")
        assert f"| CM | {model} | LRH-Net | {leads} | {difference} | {interval} |" in results


def test_the_gain_of_the_paper_is_the_difference_of_its_scores():
    ((_, rows),) = tables(tool.gains())
    assert [row[2] for row in rows[:3]] == ["+1.00", "+1.87", "+1.90"]  # 59.49, 60.36 and 60.39 less 58.49


def test_an_unknown_table_is_refused():
    with pytest.raises(DataError, match="no table 'nothing'; there are sizes"):
        tool.updated("<!-- table: nothing -->\n<!-- end -->")
