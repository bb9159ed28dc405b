"""Losses between the features of a student and of a teacher, in any number of dimensions."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.loss import Facts
from kdkit.projectors import Projector


class Hint(nn.Module):
    """Mean squared error to a teacher's features, through a trained projector where shapes differ (FitNet, eq. 3).

    Both (batch, channels, ...) of any dimension -> scalar, mean over all entries, in squared units of the feature.
    The projector brings the student to the teacher's shape, is trained with the student and is no part of it after.
    projector "auto" makes one where the shapes differ, "always" in any case, "never" refuses shapes that differ.
    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets"; there a convolution of 3x3, here of 1x1.
    """

    def __init__(self, *, projector: Literal["auto", "always", "never"] = "auto") -> None:
        super().__init__()
        if projector not in ("auto", "always", "never"):
            raise RecipeError(f"projector is 'auto', 'always' or 'never'; got {projector!r}")
        self.when = projector
        self.projector: nn.Module = nn.Identity()

    def build(
        self,
        student: tuple[torch.Size, ...],
        target: tuple[torch.Size, ...],
        facts: Facts,
        teacher: nn.Module | None,
    ) -> None:
        """Make the projector for these shapes. Raises RecipeError where they cannot meet."""
        (given,), (wanted,) = student, target
        differ = given[1:] != wanted[1:]
        if differ and self.when == "never":
            raise RecipeError(
                f"features of {tuple(given[1:])} cannot meet {tuple(wanted[1:])} without a projector; "
                "Hint(projector='auto') makes one"
            )
        self.projector = Projector(given, wanted) if differ or self.when == "always" else nn.Identity()

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, least (0) where the projected features are the teacher's."""
        return F.mse_loss(self.projector(student), target)


class Cosine(nn.Module):
    """One minus the cosine between flattened features, or between outputs (as in DistilBERT, Sanh et al. 2019, sec. 3).

    Both (batch, ...) of the same shape, or (batch, channels, ...) with a projector between -> scalar, mean over the
    batch, in [0, 2].
    """

    def __init__(self, *, projector: Literal["auto", "never"] = "auto") -> None:
        super().__init__()
        if projector not in ("auto", "never"):
            raise RecipeError(f"projector is 'auto' or 'never'; got {projector!r}")
        self.when = projector
        self.projector: nn.Module = nn.Identity()

    def build(
        self,
        student: tuple[torch.Size, ...],
        target: tuple[torch.Size, ...],
        facts: Facts,
        teacher: nn.Module | None,
    ) -> None:
        """Make the projector where shapes differ. Raises RecipeError where they cannot meet."""
        hint = Hint(projector=self.when)
        hint.build(student, target, facts, teacher)
        self.projector = hint.projector

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance, least (0) where the directions are the same."""
        return (1 - F.cosine_similarity(self.projector(student).flatten(1), target.flatten(1), dim=1)).mean()
