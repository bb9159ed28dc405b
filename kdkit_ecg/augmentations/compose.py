"""Apply an augmentation in some draws only, and check a sequence of augmentations."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdkit import RecipeError
from kdkit.utils.validation import validate_share
from kdkit_ecg.augmentations.base import Augmentation, Signal
from kdkit_ecg.augmentations.mixup import Mixup


@dataclass(frozen=True, slots=True)
class Sometimes:
    """Apply another augmentation with this probability."""

    augmentation: Augmentation
    probability: float = 0.5

    def __post_init__(self) -> None:
        validate_share("probability", self.probability)

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the augmented signal, or the input itself."""
        return self.augmentation(signal, rate, generator) if generator.random() < self.probability else signal


def check_augmentations(augment: tuple[Any, ...], draws: int) -> None:
    """Raise RecipeError unless `augment` is a tuple of augmentations, with Mixup last if at all.

    Also raises it if the repr of an augmentation hides its options, or if there is only one draw.
    """
    if not isinstance(augment, tuple):
        raise RecipeError(f"expected a tuple for augment, such as (LeadDropout(), Mixup()); got {augment!r}")
    if augment and draws == 1:
        raise RecipeError("augmentations differ from draw to draw, but there is one; give draws=10, for example")
    for position, augmentation in enumerate(augment, 1):
        if isinstance(augmentation, type) or not (callable(augmentation) or isinstance(augmentation, Mixup)):
            raise RecipeError(f"{augmentation!r} is not an augmentation; pass an object such as LeadDropout(0.1)")
        # A repr with an address would change the fingerprint of the data from run to run.
        if " at 0x" in repr(augmentation):
            raise RecipeError(f"the repr of {augmentation!r} does not show its options; make it a frozen dataclass")
        if isinstance(augmentation, Mixup) and position < len(augment):
            raise RecipeError("Mixup mixes samples that are augmented already; put it last in augment")
