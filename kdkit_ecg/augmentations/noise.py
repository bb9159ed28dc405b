"""Add what electrodes and the mains add: white noise, slow drift, hum."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError
from kdkit_ecg.augmentations.base import Signal, check_range, check_size, single
from kdkit_ecg.leads import LEADS


@dataclass(frozen=True, slots=True)
class GaussianNoise:
    """White noise in each lead, of a signal-to-noise ratio between `low` and `high` dB; a flat lead stays flat."""

    low: float = 10.0
    high: float = 30.0

    def __post_init__(self) -> None:
        check_range("a signal-to-noise ratio in dB", self.low, self.high)

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal with the noise."""
        ratio = generator.uniform(self.low, self.high)
        size = signal.std(axis=1, keepdims=True, dtype=np.float64) * 10 ** (-ratio / 20)
        noise: Signal = size.astype(np.float32) * generator.standard_normal(signal.shape, dtype=np.float32)
        return signal + noise


@dataclass(frozen=True, slots=True)
class BaselineWander:
    """Slow drift at each electrode, below 0.5 Hz, with a root mean square of up to `size` (in mV, if the signal is).

    It reaches the leads as electrodes do, so that III stays II - I. A band that begins at 0.5 Hz has taken all drift
    away before: this then shows a net what it will not meet.
    """

    size: float = 0.1

    def __post_init__(self) -> None:
        check_size(self.size)

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal with the drift."""
        hertz = generator.uniform([0.05, 0.2], [0.2, 0.5])
        times = np.arange(signal.shape[1]) / rate
        angles = 2 * np.pi * (hertz[:, None] * times + generator.random((2, 1)))
        courses = np.vstack([np.sin(angles), np.cos(angles)])
        return _with_electrodes(signal, courses, generator.uniform(0, self.size), generator)


@dataclass(frozen=True, slots=True)
class PowerLine:
    """The mains' hum at each electrode, at 50 or 60 Hz, with a root mean square of up to `size` (in mV, if that is so).

    Raises RecipeError at a rate, of twice the frequency or below, that cannot show it.
    """

    size: float = 0.05
    hertz: tuple[float, ...] = (50.0, 60.0)

    def __post_init__(self) -> None:
        check_size(self.size)
        if not self.hertz or min(self.hertz) <= 0:
            raise RecipeError(f"hertz are the frequencies of mains, such as (50.0, 60.0), not {self.hertz}")

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal with the hum."""
        if max(self.hertz) >= rate / 2:
            raise RecipeError(f"a hum of {max(self.hertz):g} Hz does not show at {rate:g} Hz; leave PowerLine out")
        hertz = self.hertz[generator.integers(len(self.hertz))]
        angles = 2 * np.pi * (hertz * np.arange(signal.shape[1]) / rate)
        courses = np.vstack([np.sin(angles), np.cos(angles)])
        return _with_electrodes(signal, courses, generator.uniform(0, self.size), generator)


def _with_electrodes(
    signal: Signal, courses: NDArray[np.float64], size: float, generator: np.random.Generator
) -> Signal:
    """Return (12, time) with a mix of these courses, (courses, time), of this root mean square at each electrode."""
    if len(signal) != len(LEADS):
        raise RecipeError(f"electrodes make {len(LEADS)} leads, but the signal has {len(signal)}")
    mix = generator.standard_normal((9, len(courses)))
    mix *= size / np.sqrt((mix**2).sum(axis=1, keepdims=True) / 2)  # a sine has a mean square of a half
    return single(signal + _leads(mix @ courses))


def _leads(electrodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the twelve leads of the electrodes RA, LA, LL, V1 to V6: (9, time) -> (12, time)."""
    right, left, foot = electrodes[:3]
    limbs = [left - right, foot - right, foot - left]
    goldberger = [right - (left + foot) / 2, left - (right + foot) / 2, foot - (right + left) / 2]
    return np.vstack([*limbs, *goldberger, electrodes[3:] - (right + left + foot) / 3])
