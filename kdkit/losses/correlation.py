"""Losses on the correlation of probabilities, which transfer the teacher's ranking instead of its values (DIST)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.losses.numerics import MIN_NORM, least_norm, upcast_half
from kdkit.losses.validation import (
    require_same_outputs,
    require_two_classes,
    validate_above_zero,
    validate_switches,
    validate_temperature,
    validate_weights,
)

_MAX_EPS_SHARE = 1e-4  # of the product of norms that eps is added to
# A smaller relative spread of probabilities is rounding in float32, and counts as none in any precision.
_MIN_SPREAD = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class _CorrelationOptions:
    """The options of DIST and of its multi-label form."""

    inter: float = 1.0
    intra: float = 1.0
    temperature: float = 1.0
    t_squared: bool = True
    eps: float = 1e-8

    per_position = True

    def __post_init__(self) -> None:
        validate_weights(inter=self.inter, intra=self.intra)
        validate_temperature(self.temperature)
        validate_above_zero("eps", self.eps)
        validate_switches(t_squared=self.t_squared)


@dataclass(frozen=True, slots=True, kw_only=True)
class DIST(_CorrelationOptions):
    """One minus the correlation of probabilities, within samples and within classes.

    Dimensionless, mean over rows and over columns, times temperature**2 if t_squared, as in the authors' code. inter
    weighs the correlation within a sample, between classes; intra that within a class, between samples of the
    (micro-)batch: the paper's beta and gamma. Needs at least two classes. A constant row or column, such as each column
    of a batch of one, counts as uncorrelated and gets no gradient; in the authors' code its gradient is up to 1 / eps.
    eps is added to the product of the norms, but at most 1e-4 of that product, so that columns of tiny probabilities
    count as much as others. In the authors' code, such columns count as uncorrelated.

    Formula: T² · (inter (1 - mean over rows of corr(p, q)) + intra (1 - mean over columns of corr(p, q))), with p =
        softmax(t / T) and q = softmax(s / T)
    Shapes: logits (N, C)
    Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", arXiv:2205.10536
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum, minimal (0) if all rows and columns are fully correlated."""
        require_same_outputs(student, target, self)
        require_two_classes(student, self)
        spread = least_spread(student)
        student, target = ((upcast_half(side) / self.temperature).softmax(1) for side in (student, target))
        return _correlation_loss(student, target, self, spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelDIST(_CorrelationOptions):
    """The multi-label form of DIST, with a sigmoid in place of the softmax.

    Unit, reduction and options as in DIST. Here inter compares how a sample ranks its labels, intra how a label ranks
    the samples.

    Formula: T² · (inter (1 - mean over rows of corr(p, q)) + intra (1 - mean over columns of corr(p, q))), with p =
        sigmoid(t / T) and q = sigmoid(s / T)
    Shapes: logits (N, C)
    Source: ours, after Huang et al. 2022, arXiv:2205.10536
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum, minimal (0) if all rows and columns are fully correlated."""
        require_same_outputs(student, target, self)
        spread = least_spread(student)
        student, target = ((upcast_half(side) / self.temperature).sigmoid() for side in (student, target))
        return _correlation_loss(student, target, self, spread)


def _correlation_loss(student: Tensor, target: Tensor, options: _CorrelationOptions, spread: float) -> Tensor:
    """Return the weighted sum of one minus the mean correlation of rows and of columns, from (batch, classes).

    spread: the relative spread up to which a row or column counts as constant.
    """
    loss = student.new_zeros(())
    # dim 1 correlates the classes of a sample (the paper's inter-class relation), dim 0 the samples of a class
    for weight, dim in ((options.inter, 1), (options.intra, 0)):
        loss = loss + weight * (1 - correlation(student, target, dim, options.eps, spread=spread).mean())
    return loss * options.temperature**2 if options.t_squared else loss


def least_spread(features: Tensor) -> float:
    """Return the relative spread up to which features of this precision count as constant."""
    return max(_MIN_SPREAD, least_norm(features))


def correlation(
    student: Tensor, target: Tensor, dim: int, eps: float, *, spread: float, least: float = MIN_NORM
) -> Tensor:
    """Return Pearson's correlation along a dimension, 0 if a side is constant.

    spread: see `least_spread`. least: the norm up to which a side counts as constant.
    """
    sides = [_centred(side, dim, spread, least) for side in (student, target)]
    (student, student_norm, student_is_constant), (target, target_norm, target_is_constant) = sides
    norms = student_norm * target_norm
    share = (_MAX_EPS_SHARE * norms.detach()).clamp_(max=eps)
    # A quotient by infinity is 0, and so are its gradients, including that of the norms, so the assignment need not be
    # recorded.
    norms.detach().masked_fill_(student_is_constant.logical_or_(target_is_constant), math.inf)
    return (student * target).sum(dim) / (norms + share)


def _centred(side: Tensor, dim: int, spread: float, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities minus their mean along a dimension, the resulting norm, and whether they are constant."""
    mean = side.mean(dim, keepdim=True)
    centred = side - mean
    norm = torch.linalg.vector_norm(centred, dim=dim)
    # rounding gives equal probabilities a norm above 0; their correlation would be noise with a gradient of 1 / norm
    rounding = mean.detach().squeeze(dim).abs().mul_(spread * math.sqrt(side.shape[dim])).clamp_(min=least)
    # a comparison with NaN is False, so that NaN stays visible
    return centred, norm, norm <= rounding
