"""Add what electrodes pick up beside the heart."""

import numpy as np

from kdkit_ecg.simulator.lead_projection import INDEPENDENT, Array
from kdkit_ecg.simulator.randomness import RandomRange

_LEADS = len(INDEPENDENT)


def electrode_noise(times: Array, rate: float, dice: RandomRange) -> Array:
    """Return the noise of the independent leads, (8, time) in mV, at these times in s and this rate in Hz."""
    return _wander(times, dice) + _mains(times, rate, dice) + _muscle(times, rate, dice)


def _wander(times: Array, dice: RandomRange) -> Array:
    # Breathing and slow changes at the skin: below 0.5 Hz, where the AHA puts the low cut-off of an ECG.
    size = dice.within(easy=(0.0, 0.01), hard=(0.05, 0.25))
    slow = np.array([dice.between(0.05, 0.2), dice.between(0.2, 0.4)])
    angles = 2 * np.pi * (slow[:, None] * times + dice.random.random((2, 1)))
    mixed = dice.random.standard_normal((_LEADS, 4)) @ np.vstack([np.sin(angles), np.cos(angles)])
    wander: Array = size * mixed
    return wander


def _mains(times: Array, rate: float, dice: RandomRange) -> Array:
    size = dice.within(easy=(0.0, 0.002), hard=(0.0, 0.05))
    hertz = 50.0 if dice.chance(0.5) else 60.0
    gains = dice.random.standard_normal((_LEADS, 1))
    phase = dice.random.random()
    if hertz > 0.45 * rate:  # an ECG recorder's anti-aliasing filter takes it away
        return np.zeros((_LEADS, len(times)))
    return size * gains * np.sin(2 * np.pi * (hertz * times + phase))


def _muscle(times: Array, rate: float, dice: RandomRange) -> Array:
    # White, of one power per Hz whatever the rate: `size` is its standard deviation at 500 Hz.
    size = dice.within(easy=(0.002, 0.005), hard=(0.05, 0.15)) * np.sqrt(rate / 500)
    middle = dice.random.random() * times[-1]
    burst = 1 + 2 * dice.difficulty * np.exp(-0.5 * np.square((times - middle) / 0.7))
    noise: Array = size * burst * dice.random.standard_normal((_LEADS, len(times)))
    return noise
