"""A loss between the outputs of the student and those of a teacher.

A loss on features of different shapes subclasses `kdkit.losses.ProjectedLoss`, which has a projector, and defines
`compare`. Test it with `check_loss(MyLoss, on="features", least_when_equal=False)`.
"""

from dataclasses import dataclass

from kdkit import RecipeError
from torch import Tensor


@dataclass(frozen=True)
class ClippedMSE:
    """Squared error between logits, clipped to a range so that large ones do not dominate.

    Both sides (batch, classes) -> scalar, the mean over batch and classes. limit: of the logits, above 0.

    Raises RecipeError if limit is not above 0.
    """

    limit: float = 5.0

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise RecipeError(f"limit must be above 0; got {self.limit!r}")

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the loss. In float32, because the square of a difference in bf16 has few digits."""
        difference = student.float() - target.float().clamp(-self.limit, self.limit)
        return difference.square().mean()
