"""Mix two samples, labels and all."""

from dataclasses import dataclass

import numpy as np

from kdkit_ecg.augmentations.base import check_size


@dataclass(frozen=True, slots=True)
class Mixup:
    """Each sample with a part of another of the training split, inputs and labels alike (Zhang et al. 2018, section 2).

    The larger share, drawn from Beta(alpha, alpha), is the sample's own: so its id says what it mostly is. The labels
    are shares from 0 to 1; losses per label take them. The partner and the shares are functions of (seed, id, draw) and
    of the split. It comes last among augmentations.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        check_size(self.alpha)

    def share(self, generator: np.random.Generator) -> float:
        """Return the sample's own share, from 0.5 to 1."""
        drawn = float(generator.beta(self.alpha, self.alpha))
        return max(drawn, 1 - drawn)
