"""Take leads or a stretch of time away, or change the gain."""

from dataclasses import dataclass

import numpy as np

from kdkit import RecipeError
from kdkit_ecg.augmentations.base import Signal, check_range, check_share, check_size, single


@dataclass(frozen=True, slots=True)
class LeadDropout:
    """Leads fall off: each is 0 with this probability, but never all of them."""

    probability: float = 0.1

    def __post_init__(self) -> None:
        check_share("probability", self.probability)

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal with the leads that stayed on."""
        off = generator.random(len(signal)) < self.probability
        off[generator.integers(len(signal))] &= not off.all()
        return np.where(off[:, None], np.float32(0), signal)


@dataclass(frozen=True, slots=True)
class CutOut:
    """A stretch of up to `seconds` is 0 in all leads, as where a recorder lost contact."""

    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_size(self.seconds)

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal without the stretch."""
        time = signal.shape[1]
        length = min(time, round(generator.uniform(0, self.seconds) * rate))
        start = generator.integers(time - length + 1)
        cut = signal.copy()
        cut[:, start : start + length] = 0
        return cut


@dataclass(frozen=True, slots=True)
class Scaling:
    """Another gain: all leads times one factor between `low` and `high`, so that their ratios, the axis, stay."""

    low: float = 0.8
    high: float = 1.25

    def __post_init__(self) -> None:
        check_range("a factor", self.low, self.high)
        if self.low <= 0:
            raise RecipeError(f"a factor is above 0, but low is {self.low}")

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal times the factor; halving is as likely as doubling."""
        return single(signal * np.exp(generator.uniform(np.log(self.low), np.log(self.high))))
