"""Ramps: factors of terms that change during a stage. A ramp is a function from progress in [0, 1] to a factor."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdkit.errors import RecipeError
from kdkit.utils.validation import is_number

Ramp = Callable[[float], float]


class _Factor:
    """The arithmetic of ramps: the product of a ramp and a number or another ramp is a ramp."""

    __slots__ = ()

    def __call__(self, progress: float) -> float:
        """Return the factor at this progress."""
        raise NotImplementedError

    def __mul__(self, factor: float | Ramp) -> "Product":
        # For a term, its own __rmul__ is used.
        return Product((self, factor)) if is_number(factor) or callable(factor) else NotImplemented

    def __rmul__(self, factor: float | Ramp) -> "Product":
        return Product((factor, self)) if is_number(factor) or callable(factor) else NotImplemented

    def __truediv__(self, divisor: float) -> "Product":
        return Product((self, reciprocal(divisor)))


@dataclass(frozen=True, slots=True)
class Product(_Factor):
    """The product of ramps and numbers, which is also a ramp: `100.0 * LinearRamp()`."""

    factors: tuple[float | Ramp, ...]

    def __repr__(self) -> str:
        return " * ".join(getattr(factor, "__name__", None) or repr(factor) for factor in self.factors)

    def __call__(self, progress: float) -> float:
        """Return the product at this progress."""
        return math.prod(factor(progress) if callable(factor) else factor for factor in self.factors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Transition(_Factor):
    """A ramp from one factor to another between two points of progress."""

    start: float = 0.0
    end: float = 1.0
    after: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not (is_number(self.start) and is_number(self.end)) or min(self.start, self.end) < 0:
            raise RecipeError(
                f"a ramp must change between finite factors of at least 0; got {self.start!r} to {self.end!r}"
            )
        if not (is_number(self.after) and is_number(self.until)) or not 0 <= self.after < self.until <= 1:
            raise RecipeError(
                f"a ramp must have 0 <= after < until <= 1; got after={self.after!r}, until={self.until!r}"
            )

    def _fraction(self, progress: float) -> float:
        """Return how much of the way between the two points has passed, from 0 to 1."""
        return min(1.0, max(0.0, (progress - self.after) / (self.until - self.after)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRamp(_Transition):
    """Change linearly from `start` to `end` between the progress `after` and `until`. Constant before and after.

    Progress counts optimizer updates: 0 before the first update of a stage, 1 after the last one.
    """

    def __call__(self, progress: float) -> float:
        """Return the factor at this progress."""
        return self.start + (self.end - self.start) * self._fraction(progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineRamp(_Transition):
    """Change from `start` to `end` along half a cosine between `after` and `until`. Constant before and after."""

    def __call__(self, progress: float) -> float:
        """Return the factor at this progress."""
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi * self._fraction(progress))) / 2


def reciprocal(divisor: Any) -> float:
    """Return 1 / divisor. Raises RecipeError unless it is a number above 0."""
    if not is_number(divisor) or divisor <= 0:
        raise RecipeError(f"terms and ramps are divided by a number above 0; got {divisor!r}")
    return 1 / divisor
