"""Simulate the noise that electrodes pick up: baseline wander, the hum of the mains, and muscle activity."""

import numpy as np

from kdkit_ecg.simulator.lead_projection import INDEPENDENT_LEADS, Array
from kdkit_ecg.simulator.randomness import RangeSampler

_LEADS = len(INDEPENDENT_LEADS)


def electrode_noise(times: Array, rate: float, sampler: RangeSampler) -> Array:
    """Return the noise of the independent leads, (8, time) in mV, at these times in s and this rate in Hz."""
    return baseline_wander(times, sampler) + mains_hum(times, rate, sampler) + muscle_noise(times, rate, sampler)


def baseline_wander(times: Array, sampler: RangeSampler) -> Array:
    """Return the slow drift from breathing and changes at the skin, (8, time) in mV."""
    size = sampler.within(easy=(0.0, 0.01), hard=(0.05, 0.25))
    # Below 0.5 Hz, which the AHA recommends as the low cut-off of an ECG.
    hertz = np.array([sampler.uniform(0.05, 0.2), sampler.uniform(0.2, 0.4)])
    angles = 2 * np.pi * (hertz[:, None] * times + sampler.generator.random((2, 1)))
    # Each lead mixes the same two sines and two cosines, so that it has its own phase at each frequency.
    mixed = sampler.generator.standard_normal((_LEADS, 4)) @ np.vstack([np.sin(angles), np.cos(angles)])
    wander: Array = size * mixed
    return wander


def mains_hum(times: Array, rate: float, sampler: RangeSampler) -> Array:
    """Return a sine of 50 or 60 Hz, (8, time) in mV; 0 if the sampling rate is too low for it."""
    size = sampler.within(easy=(0.0, 0.002), hard=(0.0, 0.05))
    hertz = 50.0 if sampler.chance(0.5) else 60.0
    gains = sampler.generator.standard_normal((_LEADS, 1))
    phase = sampler.generator.random()  # drawn before the return below, so that later draws are the same at all rates
    if hertz > 0.45 * rate:  # a recorder's anti-aliasing filter removes it
        return np.zeros((_LEADS, len(times)))
    return size * gains * np.sin(2 * np.pi * (hertz * times + phase))


def muscle_noise(times: Array, rate: float, sampler: RangeSampler) -> Array:
    """Return white noise that swells once in the record, (8, time) in mV."""
    # The power per Hz is the same at any rate: the first factor is the standard deviation at 500 Hz.
    size = sampler.within(easy=(0.002, 0.005), hard=(0.05, 0.15)) * np.sqrt(rate / 500)
    middle = sampler.generator.random() * times[-1]
    burst = 1 + 2 * sampler.difficulty * np.exp(-0.5 * np.square((times - middle) / 0.7))
    noise: Array = size * burst * sampler.generator.standard_normal((_LEADS, len(times)))
    return noise
