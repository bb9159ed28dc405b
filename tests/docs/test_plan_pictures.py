"""The pictures of plans in the docs are those that their tool draws."""

from pathlib import Path

import numpy as np
import pytest

from kdkit.utils.randomness import preserve_rng_state
from kdkit_ecg.simulator import Simulator
from tests.helpers.modules import load_module

ROOT = Path(__file__).parents[2]
tool = load_module("tools/make_plan_pictures.py")


@pytest.mark.parametrize("name", tool.PICTURES)
def test_a_picture_shows_the_plan_of_its_example(name, monkeypatch):
    def without_signals(self, ids):  # which are not in a plan
        return [(np.zeros((12, self.length)), self.patient(id)) for id in ids]

    monkeypatch.setattr(Simulator, "signals", without_signals)
    with preserve_rng_state():
        drawn = tool.picture(name)
    stored = (ROOT / "docs" / "images" / f"{name}.svg").read_text("utf-8")
    assert drawn == stored, "run `python tools/make_plan_pictures.py`"
