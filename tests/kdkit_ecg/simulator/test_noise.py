"""Noise grows with the difficulty, and does not depend on the sampling rate otherwise."""

import numpy as np
import pytest

from kdkit_ecg.simulator.noise import electrode_noise
from kdkit_ecg.simulator.randomness import RangeSampler


def noise(rate, difficulty, seed=0):
    times = np.arange(int(10 * rate)) / rate
    return electrode_noise(times, rate, RangeSampler(np.random.default_rng(seed), difficulty))


def test_noise_is_on_each_independent_lead_and_grows_with_the_difficulty():
    sizes = [np.mean([noise(100, difficulty, seed).std() for seed in range(10)]) for difficulty in (0, 0.5, 1)]
    assert noise(100, 1).shape == (8, 1000)
    assert sizes[0] < 0.02
    assert sizes[0] < sizes[1] < sizes[2] < 0.5


def test_muscle_noise_has_the_same_power_per_hz_at_any_rate():
    def density(rate):
        # Between 20 and 45 Hz, away from the mains.
        power = np.zeros(0)
        for seed in range(20):
            spectrum = np.square(np.abs(np.fft.rfft(noise(rate, 1, seed), axis=1))) / rate**2
            hertz = np.fft.rfftfreq(int(10 * rate), 1 / rate)
            power = np.append(power, spectrum[:, (hertz > 20) & (hertz < 45)].mean())
        return np.median(power)

    assert density(500) == pytest.approx(density(100), rel=0.5)


def test_the_hum_is_present_only_if_the_rate_can_show_it():
    def peak(rate, hertz):
        loudest = 0.0
        for seed in range(10):
            spectrum = np.abs(np.fft.rfft(noise(rate, 1, seed), axis=1)).max(axis=0)
            loudest = max(loudest, spectrum[round(hertz * 10)] / np.median(spectrum))
        return loudest

    assert peak(500, 50) > 5
    assert peak(500, 60) > 5
    assert peak(100, 40) < 5  # the alias of 60 Hz
