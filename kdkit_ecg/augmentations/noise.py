"""Add noise: white noise, slow drift of the baseline, and the hum of the mains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError
from kdkit.utils.validation import is_number, validate_above_zero
from kdkit_ecg.augmentations.base import Signal, Sometimes, check_range
from kdkit_ecg.leads import LEADS


@dataclass(frozen=True, slots=True)
class GaussianNoise:
    """Add white noise to each lead, at a signal-to-noise ratio between `low` and `high` dB; a flat lead stays flat."""

    low: float = 10.0
    high: float = 30.0

    def __post_init__(self) -> None:
        check_range("the signal-to-noise ratio in dB", self.low, self.high)

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal with the noise."""
        ratio = generator.uniform(self.low, self.high)
        # Decibels count power, hence 20 instead of 10 for the amplitude.
        size = signal.std(axis=1, keepdims=True, dtype=np.float64) * 10 ** (-ratio / 20)
        noise: Signal = size.astype(np.float32) * generator.standard_normal(signal.shape, dtype=np.float32)
        return signal + noise


@dataclass(frozen=True, slots=True)
class BaselineWander:
    """Add slow drift at each electrode, below 0.5 Hz, with a root mean square of up to `size` in the signal's unit.

    It is added to electrodes, not to leads, so that III = II - I still holds. Data that is band-pass filtered from
    0.5 Hz contains no drift: with such data, this augmentation trains a network for signals that it will not see.
    """

    size: float = 0.1

    def __post_init__(self) -> None:
        validate_above_zero("size", self.size)

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal with the drift."""
        hertz = generator.uniform([0.05, 0.2], [0.2, 0.5])
        times = np.arange(signal.shape[1]) / rate
        angles = 2 * np.pi * (hertz[:, None] * times + generator.random((2, 1)))  # (2, time)
        return _add_at_electrodes(signal, angles, generator.uniform(0, self.size), generator)


@dataclass(frozen=True, slots=True)
class PowerLine:
    """Add the hum of the mains at each electrode, with a root mean square of up to `size` in the signal's unit.

    hertz: the frequencies to choose from.
    Raises RecipeError when it is applied at a rate of at most twice the highest frequency.
    """

    size: float = 0.05
    hertz: tuple[float, ...] = (50.0, 60.0)

    def __post_init__(self) -> None:
        validate_above_zero("size", self.size)
        is_tuple = isinstance(self.hertz, tuple) and all(map(is_number, self.hertz))
        if not is_tuple or min(self.hertz, default=0) <= 0:
            raise RecipeError(f"expected the frequencies of mains for hertz, such as (50.0, 60.0); got {self.hertz!r}")

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal with the hum."""
        if max(self.hertz) >= rate / 2:  # the Nyquist frequency
            raise RecipeError(
                f"a hum of {max(self.hertz):g} Hz cannot be sampled at {rate:g} Hz; leave PowerLine out, or pass hertz"
            )
        hertz = self.hertz[generator.integers(len(self.hertz))]
        angles = 2 * np.pi * (hertz * np.arange(signal.shape[1]) / rate)  # (time,)
        return _add_at_electrodes(signal, angles, generator.uniform(0, self.size), generator)


def require_electrodes(augment: Sequence[Any], leads: Sequence[str]) -> None:
    """Raise RecipeError if an augmentation adds noise at electrodes, but the leads are not LEADS, in this order."""
    for augmentation in augment:
        inner = augmentation
        while isinstance(inner, Sometimes):
            inner = inner.augmentation
        if isinstance(inner, BaselineWander | PowerLine) and tuple(leads) != LEADS:
            raise RecipeError(
                f"{augmentation!r} adds noise at electrodes, which needs the leads {', '.join(LEADS)}, in this order; "
                f"got {', '.join(leads)}; leave it out, or read all twelve and select some with the view Leads"
            )


def _add_at_electrodes(
    signal: Signal, angles: NDArray[np.floating[Any]], size: float, generator: np.random.Generator
) -> Signal:
    """Return (12, time) with a random mix of the sine and cosine of these angles at each electrode; size: its RMS."""
    if len(signal) != len(LEADS):
        raise RecipeError(f"noise at electrodes needs all {len(LEADS)} leads, but the signal has {len(signal)}")
    courses = np.vstack([np.sin(angles), np.cos(angles)])  # (courses, time)
    mix = generator.standard_normal((9, len(courses)))
    mix *= size / np.sqrt((mix**2).sum(axis=1, keepdims=True) / 2)  # a sine has a mean square of one half
    # The nine electrodes are RA, LA, LL and V1 to V6; the twelve leads are differences of their potentials.
    electrodes = mix @ courses
    right, left, foot = electrodes[:3]
    limbs = [left - right, foot - right, foot - left]
    goldberger = [right - (left + foot) / 2, left - (right + foot) / 2, foot - (right + left) / 2]
    wilson = (right + left + foot) / 3  # the reference of the chest leads
    return np.asarray(signal + np.vstack([*limbs, *goldberger, electrodes[3:] - wilson]), dtype=np.float32)
