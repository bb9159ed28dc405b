"""Stretch and compress time along a signal."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError
from kdkit.utils.validation import is_number, validate_count
from kdkit_ecg.augmentations.base import Signal


@dataclass(frozen=True, slots=True)
class TimeWarp:
    """Let time run up to `share` faster or slower along the signal; its first and last samples stay in place.

    knots: the number of evenly spaced points where the speed is drawn; it is linear between them.
    All leads are warped alike, by cubic interpolation. Intervals are stretched, so a PR or QT time or a rate may cross
    its threshold while the label stays: keep `share` small for the classes that depend on them (IAVB, LPR, LQT, Brady,
    STach). QRS complexes are stretched too, unlike those of a heart that beats faster.
    """

    share: float = 0.05
    knots: int = 5

    def __post_init__(self) -> None:
        validate_count("knots", self.knots, least=2)
        if not is_number(self.share) or not 0 < self.share < 0.5:
            raise RecipeError(f"expected 0 < share < 0.5 for TimeWarp; got {self.share!r}")

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal warped."""
        last = signal.shape[1] - 1
        if last < 1:
            return signal
        speeds = generator.uniform(1 - self.share, 1 + self.share, self.knots)
        speed = np.interp(np.arange(last) + 0.5, np.linspace(0, last, self.knots), speeds)
        # Time at each sample, (time,): the integral of the speed between the samples.
        elapsed = np.concatenate([[0.0], np.cumsum(speed)])
        return interpolate(signal, elapsed * (last / elapsed[-1]))  # scaled so that the last sample stays the last


def interpolate(signal: Signal, times: NDArray[np.float64]) -> Signal:
    """Return the signal at these times, in samples: cubic convolution (Keys 1981, a = -1/2), ends repeated."""
    before = np.floor(times).astype(np.int64)
    part = times - before
    last = signal.shape[1] - 1
    # The kernel's weights of the samples at before - 1, before, before + 1 and before + 2.
    weights = (
        ((2 - part) * part - 1) * part / 2,
        ((3 * part - 5) * part * part + 2) / 2,
        ((4 - 3 * part) * part + 1) * part / 2,
        (part - 1) * part * part / 2,
    )
    warped = np.zeros(signal.shape, dtype=np.float32)
    for step, weight in enumerate(weights):
        warped += signal.take(np.clip(before + step - 1, 0, last), axis=1) * weight.astype(np.float32)
    return warped
