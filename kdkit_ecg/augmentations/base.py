"""Define the interface of an augmentation, and check a range of its options."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError

Signal = NDArray[np.float32]


class Augmentation(Protocol):
    """A change of a signal: a frozen dataclass, because its repr must contain all its options."""

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return a new signal of the same shape, (leads, time) float32, without writing to the input; rate in Hz."""
        ...


def check_range(quantity: str, low: float, high: float) -> None:
    """Raise RecipeError unless low <= high; NaN is refused too."""
    if not low <= high:
        raise RecipeError(f"expected low <= high for {quantity}; got {low} and {high}")
