"""Put augmentations together: one after the other, some only sometimes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdkit import RecipeError
from kdkit_ecg.augmentations.base import Augmentation, Signal, check_share
from kdkit_ecg.augmentations.mixup import Mixup


@dataclass(frozen=True, slots=True)
class Sometimes:
    """Another augmentation, in this share of the draws."""

    augmentation: Augmentation
    probability: float = 0.5

    def __post_init__(self) -> None:
        check_share("probability", self.probability)

    def __call__(self, signal: Signal, rate: float, generator: np.random.Generator) -> Signal:
        """Return the signal changed, or as it is."""
        return self.augmentation(signal, rate, generator) if generator.random() < self.probability else signal


def check_augmentations(augment: tuple[Any, ...], draws: int) -> None:
    """Raise RecipeError for what is no augmentation, says not what it does, comes after Mixup, or has one draw only."""
    if not isinstance(augment, tuple):
        raise RecipeError(f"augment is a tuple, such as (LeadDropout(), Mixup()), not {augment!r}")
    if augment and draws == 1:
        raise RecipeError("augmentations change with the draw, and there is one; give draws=10, say")
    for place, each in enumerate(augment):
        if isinstance(each, type) or not (callable(each) or isinstance(each, Mixup)):
            raise RecipeError(f"{each!r} is no augmentation; pass an object such as LeadDropout(0.1)")
        if " at 0x" in repr(each):  # an address: the fingerprint of the data would change from run to run
            raise RecipeError(f"the repr of {each!r} does not tell what it does; make it a frozen dataclass")
        if isinstance(each, Mixup) and place + 1 < len(augment):
            raise RecipeError("Mixup mixes samples that are changed already: put it last in augment")
