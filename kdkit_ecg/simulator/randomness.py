"""Draw the random numbers of one record, from ranges that move from easy to hard."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class RandomRange:
    """A source of chance, and how difficult to be: 0 keeps far from every threshold, 1 goes close to it."""

    random: np.random.Generator
    difficulty: float

    def within(self, *, easy: Range, hard: Range) -> float:
        """Return a number between the two ranges' bounds, interpolated at the difficulty."""
        low = easy[0] + (hard[0] - easy[0]) * self.difficulty
        high = easy[1] + (hard[1] - easy[1]) * self.difficulty
        return low + (high - low) * self.random.random()

    def between(self, low: float, high: float) -> float:
        """Return a number between two bounds that the difficulty does not move."""
        return low + (high - low) * self.random.random()

    def jitter(self, run_trials: float) -> float:
        """Return a positive factor around 1 whose logarithm has this standard deviation."""
        return float(np.exp(run_trials * self.random.standard_normal()))

    def chance(self, probability: float) -> bool:
        """Return True this often."""
        return self.random.random() < probability

    def pick(self, choices: Mapping[tuple[str, ...], float]) -> tuple[str, ...]:
        """Return one of the choices, or () as often as their probabilities fall short of 1."""
        left = self.random.random()
        for choice, probability in choices.items():
            left -= probability
            if left < 0:
                return choice
        return ()
