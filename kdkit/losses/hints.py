"""Losses that pull a student's features to a teacher's, entry by entry, through a projector where shapes differ."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.features import SILENT, Projected, full


class Hint(Projected):
    """Mean squared error to a teacher's features, through a trained projector where shapes differ (FitNet).

    In squared units of the feature, mean over all entries, where the paper has half the sum. The projector brings the
    student to the teacher's shape, is trained with the student and is no part of it after. projector "auto" makes one
    where the shapes differ, "always" in any case, "never" refuses shapes that differ. kind "linear" is a map over
    channels, "conv" the convolutional regressor of the paper with batch norm and ReLU, "bottleneck" the projector of
    SimKD (Chen et al. 2022, arXiv:2203.14001), "mlp" two maps over channels.

    Formula: mean (g(s) - t)², with g a projector where shapes differ
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, eq. 3
    """

    def between(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, least (0) where the projected features are the teacher's."""
        return F.mse_loss(student, target)


class SquareHead(Projected):
    """Squared error relative to the size of the teacher's features (SquareHead).

    Without unit: both sums are over the whole batch, the teacher's counting as 1 where it is silent. projector and kind
    are those of Hint.

    Formula: Σ (g(s) - t)² / Σ t², with g a projector where shapes differ
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Kurtic et al. 2023, "Sparse Fine-tuning for Inference Acceleration of Large Language Models",
        arXiv:2310.06927
    """

    def between(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the ratio, least (0) where the projected features are the teacher's."""
        student, target = full(student), full(target)
        size = target.square().sum()
        # a teacher that is silent has no size, and what is divided by nearly nothing is not finite
        return (student - target).square().sum() / torch.where(size > SILENT**2, size, 1.0)
