"""Errors between features, with a projector for students of another shape (FitNet, SquareHead and DistilHuBERT)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.losses.features import ProjectedLoss
from kdkit.losses.normalisation import TargetNormalisation, normalise_target
from kdkit.losses.numerics import least_norm, unit_vectors, upcast_half
from kdkit.losses.projectors.factory import ProjectorKind, ProjectorMode
from kdkit.losses.validation import validate_at_least_zero, validate_choice

FeatureError = Literal["mse", "smooth_l1"]


class Hint(ProjectedLoss):
    """Mean squared error to the teacher's features, through a trained projector if shapes differ (FitNet).

    In squared units of the feature, mean over all entries; the paper takes half the sum. The projector maps the student
    to the teacher's shape. It is trained with the student and discarded after training. projector "auto" makes one if
    the shapes differ, "always" in any case, "never" raises RecipeError if they differ. kind "linear" is a map over
    channels, "conv" the convolutional regressor of the paper with batch norm and ReLU, "bottleneck" the projector of
    SimKD (Chen et al. 2022, arXiv:2203.14001), "mlp" two maps over channels, "orthogonal" a linear map with orthonormal
    rows or columns.

    normalise: "layer_norm" normalises the channels of the target at every position; over the batch, "whiten" makes them
    uncorrelated, and "standardise" gives features of any offset and scale a mean variance of 1, which balances several
    teachers as PHI-S does (Ranzinger et al. 2024, arXiv:2410.01680). error: "mse" or "smooth_l1". VkD (Miles et al.
    2024, arXiv:2403.06213) is Hint(projector="always", kind="orthogonal", normalise="layer_norm", error="smooth_l1") on
    pooled features, as in its authors' code; its paper whitens the target for generative tasks.

    Formula: mean (g(s) - n(t))², with g a projector if shapes differ and n the normalisation, if any
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, eq. 3
    """

    def __init__(
        self,
        *,
        projector: ProjectorMode = "auto",
        kind: ProjectorKind = "linear",
        normalise: TargetNormalisation = "none",
        error: FeatureError = "mse",
    ) -> None:
        super().__init__(projector=projector, kind=kind)
        validate_choice("normalise", normalise, TargetNormalisation)
        validate_choice("error", error, FeatureError)
        self.normalise, self.error = normalise, error

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, minimal (0) if the projected features are the teacher's, normalised."""
        student, target = upcast_half(student), normalise_target(upcast_half(target), self.normalise)
        return F.mse_loss(student, target) if self.error == "mse" else F.smooth_l1_loss(student, target)


class SquareHead(ProjectedLoss):
    """Squared error relative to the squared norm of the teacher's features (SquareHead).

    Dimensionless; both sums are over the whole batch. If the teacher's features are all 0, their norm counts as 1; for
    a student in fp16, so does a squared norm up to 6e-5. projector and kind are as in Hint.

    Formula: Σ (g(s) - t)² / Σ t², with g a projector if shapes differ
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Kurtic et al. 2023, "Sparse Fine-tuning for Inference Acceleration of Large Language Models",
        arXiv:2310.06927
    """

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the ratio, minimal (0) if the projected features are the teacher's."""
        # the gradient to the student grows as 1 / squared_norm, so in fp16 this is the number to bound
        least = least_norm(student) if student.dtype == torch.float16 else least_norm(student) ** 2
        student, target = upcast_half(student), upcast_half(target)
        squared_norm = target.square().sum()
        # all-zero teacher features would divide by 0; the error then keeps its own scale
        return (student - target).square().sum() / torch.where(squared_norm > least, squared_norm, 1.0)


class DistilHubert(ProjectedLoss):
    """Mean absolute error to the teacher's features, and the cosine with them at each position (DistilHuBERT).

    Mean over all entries, and over all positions. The paper predicts layers 4, 8 and 12 of the teacher from the last
    layer of the student, each through a prediction head of its own: a sum of three terms with the same student tap.
    projector: the prediction head, by default even if both have one shape; see Hint. cosine_weight: of the cosine.

    Formula: mean |g(s) - t| - cosine_weight · mean log sigmoid(cos(g(s), t)), with g a projector
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Chang et al. 2022, "DistilHuBERT: Speech Representation Learning by Layer-wise Distillation of Hidden-unit
        BERT", arXiv:2110.01900, eq. 1
    """

    def __init__(
        self, *, projector: ProjectorMode = "always", kind: ProjectorKind = "linear", cosine_weight: float = 1.0
    ) -> None:
        super().__init__(projector=projector, kind=kind)
        validate_at_least_zero("cosine_weight", cosine_weight)
        self.cosine_weight = cosine_weight

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, minimal (0.31 cosine_weight) if the projected features are the teacher's."""
        least = least_norm(student)
        student, target = upcast_half(student), upcast_half(target)
        cosine = (unit_vectors(student, least=least) * unit_vectors(target, least=least)).sum(1)
        return F.l1_loss(student, target) - self.cosine_weight * F.logsigmoid(cosine).mean()
