"""Random quantities have the distribution that their method states."""

import numpy as np
import pytest

from kdkit_ecg.simulator.randomness import RangeSampler


def sampler_at(difficulty):
    return RangeSampler(np.random.default_rng(0), difficulty)


@pytest.mark.parametrize(("difficulty", "low", "high"), [(0, 1, 2), (0.5, 2, 4), (1, 3, 6)])
def test_ranges_move_from_easy_to_hard_with_the_difficulty(difficulty, low, high):
    sampler = sampler_at(difficulty)
    drawn = [sampler.within(easy=(1, 2), hard=(3, 6)) for _ in range(500)]
    assert low <= min(drawn) < low + 0.1
    assert high - 0.1 < max(drawn) <= high


def test_choices_have_their_probabilities_and_none_has_the_rest():
    sampler = sampler_at(0)
    drawn = [sampler.choose({("a",): 0.2, ("b", "c"): 0.3}) for _ in range(4000)]
    assert drawn.count(("a",)) / 4000 == pytest.approx(0.2, abs=0.03)
    assert drawn.count(("b", "c")) / 4000 == pytest.approx(0.3, abs=0.03)
    assert drawn.count(()) / 4000 == pytest.approx(0.5, abs=0.03)


def test_jitter_is_a_positive_factor_around_one():
    sampler = sampler_at(0)
    drawn = np.array([sampler.jitter(0.2) for _ in range(2000)])
    assert (drawn > 0).all()
    assert np.median(drawn) == pytest.approx(1, abs=0.03)
    assert np.log(drawn).std() == pytest.approx(0.2, abs=0.02)
