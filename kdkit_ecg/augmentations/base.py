"""Define the interface of an augmentation, and check its options."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError

Signal = NDArray[np.float32]


class Augmentation(Protocol):
    """A change of a signal: a frozen dataclass, because its repr must contain all its options."""

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return a new signal of the same shape, (leads, time) float32, without writing to the input; rate in Hz."""
        ...


def as_float32(signal: NDArray[Any]) -> Signal:
    """Return the signal in float32, the type of all signals."""
    return signal.astype(np.float32)


def check_share(name: str, share: float) -> None:
    """Raise RecipeError unless the number is between 0 and 1; both are included."""
    if not 0 <= share <= 1:
        raise RecipeError(f"expected {name} between 0 and 1; got {share}")


def check_range(quantity: str, low: float, high: float) -> None:
    """Raise RecipeError unless low <= high; NaN is refused too."""
    if not low <= high:
        raise RecipeError(f"expected low <= high for {quantity}; got {low} and {high}")


def check_positive(name: str, number: float) -> None:
    """Raise RecipeError unless the number is above 0; NaN is refused too."""
    if not number > 0:
        raise RecipeError(f"expected {name} above 0; got {number}")
