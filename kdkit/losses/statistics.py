"""Losses between normalised features: neuron selectivity (NST), correlation (PKD), directions (Patient KD, FT)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.features import (
    ProjectedLoss,
    TensorOrTuple,
    as_tuple,
    flatten_samples,
    least_norm,
    require_pairs,
    require_positions,
    require_same_features,
    standardise,
    unit_vectors,
    upcast_half,
    without_autocast,
)
from kdkit.losses.projectors.factory import ProjectorKind, ProjectorMode
from kdkit.losses.projectors.resizing import match_positions
from kdkit.losses.validation import (
    Reduction,
    is_number,
    require_sides,
    validate_above_zero,
    validate_at_least_zero,
    validate_count,
    validate_reduction,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NST:
    """Squared maximum mean discrepancy between the activation patterns of neurons (channels) over positions.

    Dimensionless, mean over batch and pairs of channels. Patterns have length 1. Channels may differ. If positions
    differ, the larger map is average-pooled to the smaller. degree=1 makes the kernel linear; public code uses degree 2
    and offset 0.

    Formula: mean k(t, t) + mean k(s, s) - 2 mean k(s, t), with k(x, y) = (x · y + offset)^degree of each two channels,
        whose vectors over positions are scaled to length 1
    Shapes: features (N, C, L), (N, C, H, W)
    Source: Huang and Wang 2017, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
        arXiv:1707.01219
    """

    degree: int = 2
    offset: float = 0.0

    def __post_init__(self) -> None:
        validate_count("degree", self.degree)
        validate_at_least_zero("offset", self.offset)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the discrepancy, minimal (0) if the patterns have the same distribution."""
        require_sides(student, target, self)
        least = least_norm(student)
        student, target = match_positions(
            require_positions(upcast_half(student), self), require_positions(upcast_half(target), self)
        )
        # the pattern of a channel is its vector over positions: (batch, channels, positions)
        student, target = (unit_vectors(side.flatten(2), dim=2, least=least) for side in (student, target))
        return self.kernel(target, target) + self.kernel(student, student) - 2 * self.kernel(student, target)

    def kernel(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the mean of the kernel over batch and pairs of channels."""
        with without_autocast(first):  # the loss is a small difference of large means
            return (first @ second.mT.to(first.dtype) + self.offset).pow(self.degree).mean()


class PKD(ProjectedLoss):
    """Half the squared error between features whose channels are standardised: about 1 - Pearson's correlation.

    Dimensionless, mean over all entries. The mean and the unbiased standard deviation of every channel are over batch
    and positions (of the micro-batch, if gradients are accumulated). A channel of equal values, such as a single one,
    becomes 0 and gets no gradient. projector and kind are as in Hint; mmrazor has no projector, and resizes maps with
    other positions.

    Formula: 1/2 · mean (z(g(s)) - z(t))², with z(x) = (x - mean x) / (std x + eps) of each channel
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Cao et al. 2022, "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
        Coefficient", arXiv:2207.02039
    """

    def __init__(self, *, eps: float = 1e-6, projector: ProjectorMode = "auto", kind: ProjectorKind = "linear") -> None:
        super().__init__(projector=projector, kind=kind)
        validate_above_zero("eps", eps)
        self.eps = eps

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, minimal (0) if every channel is fully correlated."""
        return 0.5 * F.mse_loss(self.standardise(student), self.standardise(target))

    def standardise(self, features: Tensor) -> Tensor:
        """Return features whose channels have mean 0 and standard deviation 1."""
        all_but_channels = [dimension for dimension in range(features.ndim) if dimension != 1]
        # the unbiased deviation of a single value per channel would be NaN
        correction = 1 if features.numel() > features.shape[1] else 0
        return standardise(features, all_but_channels, self.eps, correction=correction)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientKD:
    """Squared distance between the normalised features of one or several layers (Patient KD, PT loss).

    Dimensionless. reduction "batchmean" is the paper's: summed over features and layers, mean over the batch, in [0, 4]
    per layer. "mean" also averages over features and layers, as in the authors' code, whose weights of 10 to 1000 are
    for this reduction: with five layers of 768 features, it is 3840 times smaller. The paper's features are those of
    the class token.

    Formula: 1/N · Σ ‖n(s) - n(t)‖², with n(x) = x / ‖x‖ of each sample
    Shapes: features (N, C), (N, C, L), (N, C, H, W); the same on both sides
    Source: Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression", arXiv:1908.09355, sec. 3.2
    """

    reduction: Reduction = "batchmean"

    def __post_init__(self) -> None:
        validate_reduction(self.reduction)

    def __call__(self, student: TensorOrTuple, target: TensorOrTuple) -> Tensor:
        """Return the distance, minimal (0) if the directions are equal."""
        require_sides(student, target, self, taps=True)
        students, targets = as_tuple(student), as_tuple(target)
        require_pairs(len(students), len(targets), self)
        loss = torch.stack([self.layer(*pair) for pair in zip(students, targets, strict=True)]).sum()
        features = sum(side[0].numel() for side in students)  # of all layers of a sample
        return loss / features if self.reduction == "mean" else loss

    def layer(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance of one layer, summed over its features."""
        require_same_features(student, target, self)
        least = least_norm(student)
        student, target = (unit_vectors(flatten_samples(side), least=least) for side in (student, target))
        return F.mse_loss(student, target, reduction="sum") / len(student)


class FT(ProjectedLoss):
    """Mean absolute difference between the normalised features of both sides (factor transfer, FT).

    Dimensionless, mean over all entries, each difference to the power p. Each sample is one vector, scaled to length 1,
    so that entries are about 1 / √(entries of a sample), and weights of 500 to 1000 are usual. The intended target is
    the teacher's factors: the code of an autoencoder, the paraphraser, trained on its features in a separate stage;
    docs/coming-from.md has an example. The teacher's own features work too. The projector is the paper's translator,
    which has three convolutions, each with batch norm and leaky ReLU; projector and kind are as in Hint.

    Formula: mean |n(g(s)) - n(t)|^p, with n(x) = x / ‖x‖ of each sample and g a projector
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Kim et al. 2018, "Paraphrasing Complex Network: Network Compression via Factor Transfer", arXiv:1802.04977,
        and its authors' code
    """

    def __init__(self, *, p: float = 1.0, projector: ProjectorMode = "always", kind: ProjectorKind = "linear") -> None:
        super().__init__(projector=projector, kind=kind)
        if not is_number(p) or p < 1:  # the gradient of |x|^p is infinite at 0 for p < 1
            raise RecipeError(f"p is a finite number of at least 1; got {p!r}")
        self.p = p

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the difference, minimal (0) if the directions are equal."""
        least = least_norm(student)
        student, target = (unit_vectors(flatten_samples(side), least=least) for side in (student, target))
        return (student - target).abs().pow(self.p).mean()
