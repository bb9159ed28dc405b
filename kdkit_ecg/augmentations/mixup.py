"""Mix two samples, inputs and labels alike."""

from dataclasses import dataclass

import numpy as np

from kdkit.utils.validation import validate_above_zero


@dataclass(frozen=True, slots=True)
class Mixup:
    """Mix each sample with another one of the training split, inputs and labels alike (Zhang et al. 2018, section 2).

    The weight is drawn from Beta(alpha, alpha), and the sample itself gets the larger part, so that its id stays
    meaningful. Labels become numbers between 0 and 1, which the per-label losses accept. The partner and the weight are
    functions of (seed, id, draw) and of the split. Must be the last augmentation.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        validate_above_zero("alpha", self.alpha)

    def share(self, generator: np.random.Generator) -> float:
        """Return the weight of the sample itself, from 0.5 to 1; its partner has the rest."""
        # The distribution is symmetric, so the sample and its partner may be exchanged.
        drawn = float(generator.beta(self.alpha, self.alpha))
        return max(drawn, 1 - drawn)
