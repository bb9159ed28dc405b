"""Losses that pull a student's features to a teacher's, entry by entry, through a projector where shapes differ."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.projected import Projected, full


class Hint(Projected):
    """Mean squared error to a teacher's features, through a trained projector where shapes differ (FitNet, eq. 3).

    Both (batch, channels, ...) of any dimension -> scalar, mean over all entries, in squared units of the feature.
    The projector brings the student to the teacher's shape, is trained with the student and is no part of it after.
    projector "auto" makes one where the shapes differ, "always" in any case, "never" refuses shapes that differ.
    kind "linear" is a map over channels, "conv" the convolutional regressor of the paper with batch norm and ReLU,
    "bottleneck" the projector of SimKD (Chen et al. 2022, sec. 3), "mlp" two maps over channels.
    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets".
    """

    def between(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, least (0) where the projected features are the teacher's."""
        return F.mse_loss(student, target)


class SquareHead(Projected):
    """Squared error relative to the size of the teacher's features (SquareHead).

    Both (batch, channels, ...) of any dimension -> scalar without a unit: the sum of squared differences over the sum
    of the teacher's squares, both over the whole batch. Kurtic et al. 2023, "Sparse Fine-tuning for Inference
    Acceleration of Large Language Models", sec. 3.
    """

    def between(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the ratio, least (0) where the projected features are the teacher's."""
        student, target = full(student), full(target)
        size = target.square().sum().clamp_min(torch.finfo(target.dtype).tiny)  # of a teacher that is silent
        return (student - target).square().sum() / size
