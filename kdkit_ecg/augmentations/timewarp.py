"""Let time run a little faster here and slower there."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError
from kdkit_ecg.augmentations.base import Signal


@dataclass(frozen=True, slots=True)
class TimeWarp:
    """Time runs up to `share` faster or slower here and there, and the signal begins and ends where it did.

    knots: where its speed is drawn, evenly spaced; linear between. All leads are warped alike, by cubic interpolation.
    It stretches intervals: a PR or QT time, or a rate, near its threshold may cross it while the label stays, so keep
    the share small where classes rest on them (IAVB, LPR, LQT, Brady, STach). QRS complexes are stretched too, which
    a faster heart's are not.
    """

    share: float = 0.05
    knots: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.share < 0.5 or self.knots < 2:
            raise RecipeError(f"TimeWarp takes 0 < share < 0.5 and two knots or more, not {self.share}, {self.knots}")

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal warped."""
        last = signal.shape[1] - 1
        if last < 1:
            return signal
        speeds = generator.uniform(1 - self.share, 1 + self.share, self.knots)
        speed = np.interp(np.arange(last) + 0.5, np.linspace(0, last, self.knots), speeds)
        reached = np.concatenate([[0.0], np.cumsum(speed)])
        return _at(signal, reached * (last / reached[-1]))


def _at(signal: Signal, times: NDArray[np.float64]) -> Signal:
    """Return the signal at these times, in samples: cubic convolution (Keys 1981, a = -1/2), ends repeated."""
    before = np.floor(times).astype(np.int64)
    part = times - before
    last = signal.shape[1] - 1
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
