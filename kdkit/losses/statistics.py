"""Losses between normalised features: distributions of neurons, correlations of channels, directions of layers."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.features import Projected, Sided, direction, full, in_pairs, same_shape, several, without_autocast
from kdkit.losses.features import with_positions as positioned
from kdkit.losses.projectors import meet
from kdkit.losses.projectors.factory import Kind, When
from kdkit.losses.validation import validate_above_zero, validate_at_least_zero, validate_count


@dataclass(frozen=True, slots=True, kw_only=True)
class NST:
    """Squared maximum mean discrepancy between the patterns in which neurons (channels) are active over positions.

    Without unit, mean over batch and pairs of channels. Patterns have length 1. Channels may differ; where positions
    do, the larger are averaged to the smaller. The kernel is linear at degree 1; public code takes degree 2 and offset
    0.

    Formula: mean k(t, t) + mean k(s, s) - 2 mean k(s, t), with k(x, y) = (x · y + offset)^degree for each two channels
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
        """Return the discrepancy, least (0) where neurons are active alike."""
        student, target = meet(positioned(full(student), self), positioned(full(target), self))
        ours, theirs = (direction(each.flatten(2), dim=2) for each in (student, target))
        return self.kernel(theirs, theirs) + self.kernel(ours, ours) - 2 * self.kernel(ours, theirs)

    def kernel(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the mean of the kernel over batch and pairs of channels."""
        with without_autocast(one):  # a difference of near numbers
            return (one @ other.mT + self.offset).pow(self.degree).mean()


class PKD(Projected):
    """Half the squared error between features whose channels are standardised: about 1 - Pearson's correlation.

    Without unit, mean over all entries. Mean and unbiased standard deviation of every channel are those over batch and
    positions (under accumulation, of the micro-batch); a single value is 0. projector and kind are those of Hint.

    Formula: 1/2 · mean (z(g(s)) - z(t))², with z(x) = (x - mean x) / (std x + eps) of each channel
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Cao et al. 2022, "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
        Coefficient", arXiv:2207.02039
    """

    def __init__(self, *, eps: float = 1e-6, projector: When = "auto", kind: Kind = "linear") -> None:
        super().__init__(projector=projector, kind=kind)
        validate_above_zero("eps", eps)
        self.eps = eps

    def between(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, least (0) where every channel is correlated."""
        return 0.5 * F.mse_loss(self.standardised(full(student)), self.standardised(full(target)))

    def standardised(self, features: Tensor) -> Tensor:
        """Return features whose channels have a mean of 0 and a deviation of 1."""
        over = [dimension for dimension in range(features.ndim) if dimension != 1]
        unbiased = 1 if features.numel() > features.shape[1] else 0
        deviation, mean = torch.std_mean(features, over, correction=unbiased, keepdim=True)
        return (features - mean) / (deviation + self.eps)


@dataclass(frozen=True, slots=True)
class PatientKD:
    """Squared distance between the normalised features of one layer or of several (Patient KD, PT loss).

    Without unit, in [0, 4] a layer, summed over features and layers, mean over the batch. The paper's features are
    those of the class token.

    Formula: 1/N · Σ ‖n(s) - n(t)‖², with n(x) = x / ‖x‖ of each sample
    Shapes: features (N, C), (N, C, L), (N, C, H, W); the same on both sides
    Source: Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression", arXiv:1908.09355, sec. 3.2
    """

    def __call__(self, student: Sided, target: Sided) -> Tensor:
        """Return the distance, least (0) where the directions are the same."""
        ours, theirs = several(student), several(target)
        in_pairs(len(ours), len(theirs), self)
        return torch.stack([self.layer(*pair) for pair in zip(ours, theirs, strict=True)]).sum()

    def layer(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance of one layer."""
        same_shape(student, target, self)
        ours, theirs = (direction(full(each).flatten(1)) for each in (student, target))
        return F.mse_loss(ours, theirs, reduction="sum") / len(ours)
