"""The pictures of docs/concepts.md are those that their tool draws."""

import pytest

from kdkit.plugins.recipe_file import load_file
from tests.helpers.command_line import ROOT

tool = load_file(ROOT / "tools" / "make_concept_pictures.py")


@pytest.mark.parametrize("name", tool.PICTURES)
def test_a_picture_of_the_concepts_is_up_to_date(name):
    stored = (ROOT / "docs" / "images" / f"{name}.svg").read_text("utf-8")
    assert tool.picture(name) == stored, "run `python tools/make_concept_pictures.py`"
    assert "\N{HORIZONTAL ELLIPSIS}" not in stored  # no text is cut
