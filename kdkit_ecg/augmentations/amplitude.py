"""Set leads or a section of time to 0, or change the gain."""

from dataclasses import dataclass

import numpy as np

from kdkit.utils.validation import validate_above_zero, validate_share
from kdkit_ecg.augmentations.base import Signal, check_range


@dataclass(frozen=True, slots=True)
class LeadDropout:
    """Set each lead to 0 with this probability, as if it had come off; at least one lead stays."""

    probability: float = 0.1

    def __post_init__(self) -> None:
        validate_share("probability", self.probability)

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal with the dropped leads at 0."""
        off = generator.random(len(signal)) < self.probability
        # One lead is always drawn, and restored only if all are off, so the number of draws is always the same.
        off[generator.integers(len(signal))] &= not off.all()
        return np.where(off[:, None], np.float32(0), signal)


@dataclass(frozen=True, slots=True)
class CutOut:
    """Set a section of up to `seconds` to 0 in all leads, as if the recorder had lost contact."""

    seconds: float = 1.0

    def __post_init__(self) -> None:
        validate_above_zero("seconds", self.seconds)

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal with the section at 0."""
        time = signal.shape[1]
        length = min(time, round(generator.uniform(0, self.seconds) * rate))
        start = generator.integers(time - length + 1)
        cut = signal.copy()
        cut[:, start : start + length] = 0
        return cut


@dataclass(frozen=True, slots=True)
class Scaling:
    """Multiply all leads by one factor between `low` and `high`, so that their ratios, and the axis, stay the same."""

    low: float = 0.8
    high: float = 1.25

    def __post_init__(self) -> None:
        check_range("the factor", self.low, self.high)
        validate_above_zero("low", self.low)

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal times the factor."""
        # Uniform in the logarithm: halving is as likely as doubling.
        factor = np.exp(generator.uniform(np.log(self.low), np.log(self.high)))
        return np.asarray(signal * factor, dtype=np.float32)
