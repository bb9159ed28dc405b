"""The public API is what docs/api.md lists, with the signatures in tests/golden/api.txt."""

import importlib

import numpy as np
import pytest

from kdkit.plugins.recipe_file import load_file
from tests.helpers.command_line import ROOT

make_api_page = load_file(ROOT / "tools" / "make_api_page.py")

ADVICE = "the public API changed: run `python tools/make_api_page.py`, and read the difference of tests/golden/api.txt"


def test_the_signatures_of_public_names_are_those_of_the_snapshot():
    assert make_api_page.SNAPSHOT.read_text().splitlines() == list(make_api_page.signatures()), ADVICE


@pytest.mark.skipif(np.__version__ < "2", reason="numpy 2 names the types of arrays differently")
def test_the_page_lists_all_public_names():
    assert make_api_page.PAGE.read_text() == make_api_page.page(), ADVICE


def test_every_public_name_has_a_docstring():
    for name in make_api_page.MODULES:
        module = importlib.import_module(name)
        for public in make_api_page.public_names(module):
            value = getattr(module, public)
            assert make_api_page._summary(value), f"{name}.{public}"


def test_the_page_is_in_the_menu_of_the_docs():
    assert "api.md" in (ROOT / "mkdocs.yml").read_text()
