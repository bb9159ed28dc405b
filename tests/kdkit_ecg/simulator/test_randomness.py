import numpy as np
import pytest

from kdkit_ecg.simulator.randomness import RandomRange


def dice(difficulty):
    return RandomRange(np.random.default_rng(0), difficulty)


@pytest.mark.parametrize(("difficulty", "low", "high"), [(0, 1, 2), (0.5, 2, 4), (1, 3, 6)])
def test_ranges_move_from_easy_to_hard_with_the_difficulty(difficulty, low, high):
    source = dice(difficulty)
    drawn = [source.within(easy=(1, 2), hard=(3, 6)) for _ in range(500)]
    assert low <= min(drawn) < low + 0.1
    assert high - 0.1 < max(drawn) <= high


def test_choices_come_as_often_as_their_probability_says_and_none_for_the_rest():
    source = dice(0)
    drawn = [source.pick({("a",): 0.2, ("b", "c"): 0.3}) for _ in range(4000)]
    assert drawn.count(("a",)) / 4000 == pytest.approx(0.2, abs=0.03)
    assert drawn.count(("b", "c")) / 4000 == pytest.approx(0.3, abs=0.03)
    assert drawn.count(()) / 4000 == pytest.approx(0.5, abs=0.03)


def test_jitter_is_a_positive_factor_around_one():
    source = dice(0)
    drawn = np.array([source.jitter(0.2) for _ in range(2000)])
    assert (drawn > 0).all()
    assert np.median(drawn) == pytest.approx(1, abs=0.03)
    assert np.log(drawn).std() == pytest.approx(0.2, abs=0.02)
