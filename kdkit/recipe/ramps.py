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
class LinearRamp(_Factor):
    """Change linearly from `start` to `end` between two points of progress, and stay constant before and after.

    Progress counts optimizer updates: 0 before the first update of a stage, 1 after the last one.
    """

    start: float = 0.0
    end: float = 1.0
    after: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        _validate(self.start, self.end, self.after, self.until)

    def __call__(self, progress: float) -> float:
        """Return the factor at this progress."""
        return self.start + (self.end - self.start) * _fraction(progress, self.after, self.until)


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineRamp(_Factor):
    """Change from `start` to `end` along half a cosine between two points of progress. Constant before and after."""

    start: float = 0.0
    end: float = 1.0
    after: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        _validate(self.start, self.end, self.after, self.until)

    def __call__(self, progress: float) -> float:
        """Return the factor at this progress."""
        fraction = _fraction(progress, self.after, self.until)
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi * fraction)) / 2


def reciprocal(divisor: Any) -> float:
    """Return 1 / divisor. Raises RecipeError unless it is a number above 0."""
    if not is_number(divisor) or divisor <= 0:
        raise RecipeError(f"terms and ramps are divided by a number above 0; got {divisor!r}")
    return 1 / divisor


def _fraction(progress: float, after: float, until: float) -> float:
    return min(1.0, max(0.0, (progress - after) / (until - after)))


def _validate(start: float, end: float, after: float, until: float) -> None:
    if not (is_number(start) and is_number(end)) or min(start, end) < 0:
        raise RecipeError(f"a ramp must change between finite factors of at least 0; got {start!r} to {end!r}")
    if not (is_number(after) and is_number(until)) or not 0 <= after < until <= 1:
        raise RecipeError(f"a ramp must have 0 <= after < until <= 1; got after={after!r}, until={until!r}")
