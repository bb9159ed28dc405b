"""Healthy hearts are within all normal limits, and differ from each other."""

import numpy as np
import pytest

from kdkit_ecg.simulator.heart_sampler import healthy_heart
from kdkit_ecg.simulator.randomness import RangeSampler


@pytest.mark.parametrize("difficulty", [0, 0.5, 1])
def test_a_healthy_heart_is_within_every_normal_limit_at_any_difficulty(difficulty):
    sampler = RangeSampler(np.random.default_rng(0), difficulty)
    for _ in range(300):
        heart = healthy_heart(sampler)
        assert 60 < heart.rate < 100
        assert heart.swing < 0.12
        assert 0.12 < heart.pr < 0.2
        assert heart.qrs.duration < 0.11
        assert -30 < heart.qrs.axis < 90
        assert heart.qrs.voltage > 0.5
        assert heart.qtc < 0.45
        assert heart.focus.duration > 0.12
        assert heart.atria == "sinus"


def test_two_healthy_hearts_differ():
    sampler = RangeSampler(np.random.default_rng(0), 0.5)
    first, second = healthy_heart(sampler), healthy_heart(sampler)
    assert all(getattr(first, name) != getattr(second, name) for name in ("rate", "pr", "qrs", "qtc", "p", "t"))
