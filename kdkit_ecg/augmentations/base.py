"""Define the interface of an augmentation, apply one in some draws only, mix two samples, and check options."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError
from kdkit.utils.validation import is_number, validate_above_zero, validate_share

Signal = NDArray[np.float32]


class Augmentation(Protocol):
    """A change of a signal: a frozen dataclass, because its repr must contain all its options."""

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return a new signal of the same shape, (leads, time) float32, without writing to the input; rate in Hz."""
        ...


@dataclass(frozen=True, slots=True)
class Sometimes:
    """Apply another augmentation with this probability."""

    augmentation: Augmentation
    probability: float = 0.5

    def __post_init__(self) -> None:
        validate_share("probability", self.probability)
        if isinstance(self.augmentation, type) or not callable(self.augmentation):
            raise RecipeError(
                f"{self.augmentation!r} is not an augmentation of one sample; pass an object such as CutOut()"
            )

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the augmented signal, or the input itself."""
        return self.augmentation(signal, rate, generator) if generator.random() < self.probability else signal


@dataclass(frozen=True, slots=True)
class Mixup:
    """Mix each sample with another one of the training split, inputs and labels alike (Zhang et al. 2018, section 2).

    The weight is drawn from Beta(alpha, alpha). The sample itself gets the larger part, so that its id stays
    meaningful. Labels become numbers between 0 and 1, which the per-label losses accept. The partner and the weight are
    functions of (seed, id, draw) and of the split. Must be the last augmentation.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        validate_above_zero("alpha", self.alpha)

    def share(self, generator: np.random.Generator) -> float:
        """Return the weight of the sample itself, from 0.5 to 1; its partner gets the rest."""
        # The distribution is symmetric, so the sample and its partner may be exchanged.
        drawn = float(generator.beta(self.alpha, self.alpha))
        return max(drawn, 1 - drawn)


def check_augmentations(augment: tuple[Any, ...], draws: int) -> None:
    """Raise RecipeError unless `augment` is a tuple of augmentations, with Mixup, if any, last.

    Also raises it if the repr of an augmentation hides its options, or if there is only one draw.
    """
    if not isinstance(augment, tuple):
        raise RecipeError(f"expected a tuple for augment, such as (LeadDropout(), Mixup()); got {augment!r}")
    if augment and draws == 1:
        raise RecipeError("augmentations differ from draw to draw, but there is only one; pass draws=10, for example")
    for position, augmentation in enumerate(augment, 1):
        if isinstance(augmentation, type) or not (callable(augmentation) or isinstance(augmentation, Mixup)):
            raise RecipeError(f"{augmentation!r} is not an augmentation; pass an object such as LeadDropout(0.1)")
        # A repr with an address would change the fingerprint of the data from run to run.
        if " at 0x" in repr(augmentation):
            raise RecipeError(f"the repr of {augmentation!r} does not show its options; make it a frozen dataclass")
        if isinstance(augmentation, Mixup) and position < len(augment):
            raise RecipeError("Mixup mixes samples that are augmented already; put it last in augment")


def check_range(quantity: str, low: float, high: float) -> None:
    """Raise RecipeError unless both are finite numbers and low <= high."""
    if not (is_number(low) and is_number(high) and low <= high):
        raise RecipeError(f"expected low <= high for {quantity}; got {low!r} and {high!r}")
