"""Losses between normalised features: distributions of neurons, correlations of channels, directions of layers."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.conditions import validate_above_zero
from kdkit.losses.projected import Projected, Sided, at_least, direction, full, in_pairs, same_shape, several
from kdkit.losses.projected import with_positions as positioned
from kdkit.losses.samples import without_autocast
from kdkit.projectors import meet
from kdkit.projectors.kinds import Kind, When


@dataclass(frozen=True, slots=True, kw_only=True)
class NST:
    """Squared maximum mean discrepancy between the patterns in which neurons (channels) are active over positions.

    Both (batch, channels, positions...); channels may differ, and where positions do, the larger
    are averaged to the smaller -> scalar without a unit, mean over batch and pairs of channels. Patterns have length
    1; the kernel is (x . y + offset)**degree, linear at degree 1. Huang and Wang 2017, "Like What You Like: Knowledge
    Distill via Neuron Selectivity Transfer", sec. 4; degree 2 and offset 0 there.
    """

    degree: int = 2
    offset: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, self.degree, "degree")
        if not 0 <= self.offset < float("inf"):
            raise RecipeError(f"offset is a finite number of at least 0; got {self.offset!r}")

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

    Both (batch, channels, ...) of any dimension -> scalar without a unit, mean over all entries. Mean and unbiased
    standard deviation of every channel are those over batch and positions (under accumulation, of the micro-batch); a
    single value is 0.
    Cao et al. 2022, "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
    sec. 3.
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

    Both (batch, features...) of the same shape, or tuples of such, one per layer -> scalar without a unit, in [0, 4] a
    layer, summed over features and layers, mean over the batch. Sun et al. 2019, "Patient Knowledge Distillation for
    BERT Model Compression", eq. 7; the features are those of the class token there.
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
