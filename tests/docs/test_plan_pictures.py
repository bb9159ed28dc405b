"""The pictures of plans in the docs are those that their tool draws."""

import importlib.util
from pathlib import Path

import pytest

from kdkit.utils.randomness import preserve_rng_state

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("make_plan_pictures", ROOT / "tools" / "make_plan_pictures.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.mark.parametrize("name", tool.PICTURES)
def test_a_picture_shows_the_plan_of_its_example(name):
    with preserve_rng_state():
        drawn = tool.picture(name)
    stored = (ROOT / "docs" / "images" / f"{name}.svg").read_text("utf-8")
    assert drawn == stored, "run `python tools/make_plan_pictures.py`"
