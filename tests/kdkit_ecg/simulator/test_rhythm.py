"""Beats have the intervals of their rhythm, and only fluttering or fibrillating atria are active between them."""

from dataclasses import replace

import numpy as np
import pytest

from kdkit_ecg.simulator.heart_sampler import healthy_heart
from kdkit_ecg.simulator.randomness import RangeSampler
from kdkit_ecg.simulator.rhythm import atrial_activity, sample_beats


def sampler(seed):
    return RangeSampler(np.random.default_rng(seed), 0.0)


def heart(seed=0, **changes):
    return replace(healthy_heart(sampler(seed)), **{"rate": 75.0, "swing": 0.03} | changes)


@pytest.mark.parametrize("rate", [40.0, 75.0, 140.0])
def test_beats_cover_the_record_at_the_heart_rate(rate):
    onsets = sample_beats(heart(rate=rate, swing=0.0), 10, sampler(1)).onsets
    assert onsets[0] < 0
    assert onsets[-1] > 10
    assert 60 / np.diff(onsets).mean() == pytest.approx(rate)


@pytest.mark.parametrize("seed", range(5))
def test_intervals_within_the_record_vary_by_the_swing(seed):
    onsets = sample_beats(heart(swing=0.2), 10, sampler(seed)).onsets
    inside = np.diff(onsets[(onsets > 0) & (onsets < 10)])
    assert np.ptp(inside) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("rate", [40.0, 60.0, 95.0])
@pytest.mark.parametrize("seed", range(5))
def test_each_kind_of_early_beat_comes_early_and_inside_the_record(seed, rate):
    beats = sample_beats(heart(rate=rate, swing=0.0, early=("atrial", "ventricular")), 10, sampler(seed))
    gaps = np.diff(beats.onsets)
    for kind in ("atrial", "ventricular"):
        indices = [index for index, beat_kind in enumerate(beats.kinds) if beat_kind == kind]
        assert indices
        for index in indices:
            assert gaps[index - 1] < 0.86 * 60 / rate
            assert 1 < beats.onsets[index] < 9
            both = gaps[index - 1] + gaps[index]
            assert both < 1.99 * 60 / rate if kind == "atrial" else both == pytest.approx(2 * 60 / rate)


def test_only_atria_that_flutter_or_fibrillate_are_active_between_beats():
    times = np.arange(0, 10, 0.01)
    assert not atrial_activity(heart(), times, sampler(0)).any()
    assert not atrial_activity(heart(atria="silent"), times, sampler(0)).any()
    flutter = atrial_activity(heart(atria="fluttering", atrial_rate=300.0, atrial_size=0.1), times, sampler(0))
    spectrum = np.abs(np.fft.rfft(flutter[1]))
    assert np.fft.rfftfreq(len(times), 0.01)[spectrum.argmax()] == pytest.approx(5.0)


def test_fibrillation_has_no_single_rate():
    times = np.arange(0, 10, 0.01)
    waves = atrial_activity(heart(atria="fibrillating", atrial_rate=420.0, atrial_size=0.1), times, sampler(0))
    power = np.square(np.abs(np.fft.rfft(waves[1])))
    rates = np.fft.rfftfreq(len(times), 0.01)
    assert power[(rates > 4) & (rates < 10)].sum() > 0.9 * power.sum()
    assert power.max() < 0.7 * power.sum()
