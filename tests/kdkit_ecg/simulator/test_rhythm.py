from dataclasses import replace

import numpy as np
import pytest

from kdkit_ecg.simulator.heart_sampler import healthy_heart
from kdkit_ecg.simulator.randomness import RandomRange
from kdkit_ecg.simulator.rhythm import atrial_activity, beats


def dice(seed):
    return RandomRange(np.random.default_rng(seed), 0.0)


def heart(seed=0, **changes):
    return replace(healthy_heart(dice(seed)), **{"rate": 75.0, "swing": 0.03} | changes)


@pytest.mark.parametrize("rate", [40.0, 75.0, 140.0])
def test_beats_cover_the_record_at_the_rate_asked_for(rate):
    onsets = beats(heart(rate=rate, swing=0.0), 10, dice(1)).onsets
    assert onsets[0] < 0
    assert onsets[-1] > 10
    assert 60 / np.diff(onsets).mean() == pytest.approx(rate)


@pytest.mark.parametrize("seed", range(5))
def test_intervals_swing_as_far_as_asked_for_within_the_record(seed):
    onsets = beats(heart(swing=0.2), 10, dice(seed)).onsets
    seen = np.diff(onsets[(onsets > 0) & (onsets < 10)])
    assert np.ptp(seen) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("rate", [40.0, 60.0, 95.0])
@pytest.mark.parametrize("seed", range(5))
def test_each_kind_of_early_beat_comes_early_and_inside_the_record(seed, rate):
    beating = beats(heart(rate=rate, swing=0.0, early=("atrial", "ventricular")), 10, dice(seed))
    gaps = np.diff(beating.onsets)
    for kind in ("atrial", "ventricular"):
        places = [place for place, each in enumerate(beating.kinds) if each == kind]
        assert places
        for place in places:
            assert gaps[place - 1] < 0.86 * 60 / rate
            assert 1 < beating.onsets[place] < 9
            both = gaps[place - 1] + gaps[place]
            assert both < 1.99 * 60 / rate if kind == "atrial" else both == pytest.approx(2 * 60 / rate)


def test_only_atria_that_flutter_or_fibrillate_are_active_between_beats():
    times = np.arange(0, 10, 0.01)
    assert not atrial_activity(heart(), times, dice(0)).any()
    assert not atrial_activity(heart(atria="silent"), times, dice(0)).any()
    flutter = atrial_activity(heart(atria="fluttering", atrial_rate=300.0, atrial_size=0.1), times, dice(0))
    spectrum = np.abs(np.fft.rfft(flutter[1]))
    assert np.fft.rfftfreq(len(times), 0.01)[spectrum.argmax()] == pytest.approx(5.0)


def test_fibrillation_has_no_single_rate():
    times = np.arange(0, 10, 0.01)
    waves = atrial_activity(heart(atria="fibrillating", atrial_rate=420.0, atrial_size=0.1), times, dice(0))
    power = np.square(np.abs(np.fft.rfft(waves[1])))
    rates = np.fft.rfftfreq(len(times), 0.01)
    assert power[(rates > 4) & (rates < 10)].sum() > 0.9 * power.sum()
    assert power.max() < 0.7 * power.sum()
