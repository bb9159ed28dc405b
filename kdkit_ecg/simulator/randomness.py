"""Sample the random quantities of one record from ranges that depend on the difficulty."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class RangeSampler:
    """A random generator with a difficulty: at 0 findings are far from every threshold, at 1 close to it.

    The order of the calls is part of a record's definition: one more draw changes all later ones.
    """

    generator: np.random.Generator
    difficulty: float

    def within(self, *, easy: Range, hard: Range) -> float:
        """Return a uniform number from a range between `easy` (difficulty 0) and `hard` (difficulty 1)."""
        low = easy[0] + (hard[0] - easy[0]) * self.difficulty
        high = easy[1] + (hard[1] - easy[1]) * self.difficulty
        return self.uniform(low, high)

    def uniform(self, low: float, high: float) -> float:
        """Return a uniform number from a range that does not depend on the difficulty."""
        return low + (high - low) * self.generator.random()

    def jitter(self, sigma: float) -> float:
        """Return a log-normal factor with median 1; sigma: the standard deviation of its logarithm."""
        return float(np.exp(sigma * self.generator.standard_normal()))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.generator.random() < probability

    def choose(self, choices: Mapping[tuple[str, ...], float]) -> tuple[str, ...]:
        """Return one of the choices by their probabilities, or () with the remaining probability."""
        remaining = self.generator.random()
        for choice, probability in choices.items():
            remaining -= probability
            if remaining < 0:
                return choice
        return ()
