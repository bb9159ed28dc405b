"""The pictures of plans in the docs are those that their tool draws."""

from pathlib import Path

import pytest

from kdkit.utils.randomness import preserve_rng_state
from tests.helpers.modules import load_module

ROOT = Path(__file__).parents[2]
tool = load_module("tools/make_plan_pictures.py")


@pytest.mark.parametrize("name", tool.PICTURES)
@pytest.mark.usefixtures("noise_instead_of_ecgs")
def test_a_picture_shows_the_plan_of_its_example(name):
    with preserve_rng_state():
        drawn = tool.picture(name)
    stored = (ROOT / "docs" / "images" / f"{name}.svg").read_text("utf-8")
    assert drawn == stored, "run `python tools/make_plan_pictures.py`"
