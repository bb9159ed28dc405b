"""What an augmentation is, and what its options are held to."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError

Signal = NDArray[np.float32]


class Augmentation(Protocol):
    """Something that changes a signal: a frozen dataclass, so that its repr tells all that it does."""

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return another signal of this shape, (leads, time) float32, and leave this one as it is; rate in Hz."""
        ...


def single(signal: NDArray[Any]) -> Signal:
    """Return the signal in float32."""
    return signal.astype(np.float32)


def check_share(name: str, share: float) -> None:
    """Raise RecipeError for a number outside 0 to 1."""
    if not 0 <= share <= 1:
        raise RecipeError(f"{name} is a share from 0 to 1, not {share}")


def check_range(what: str, low: float, high: float) -> None:
    """Raise RecipeError where low is above high."""
    if not low <= high:
        raise RecipeError(f"{what} lies between low and high, not {low} and {high}")


def check_size(size: float) -> None:
    """Raise RecipeError for a number that is not above 0."""
    if not size > 0:
        raise RecipeError(f"a size, length or alpha is above 0, not {size}")
