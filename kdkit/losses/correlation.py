"""Losses that ask a student for its teacher's ranking and proportions, not for its probabilities."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.losses.features import full
from kdkit.losses.validation import (
    same_outputs,
    several_classes,
    validate_above_zero,
    validate_switches,
    validate_temperature,
    validate_weights,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Correlating:
    """The options of DIST and of its per-label form."""

    inter: float = 1.0
    intra: float = 1.0
    temperature: float = 1.0
    t_squared: bool = True
    eps: float = 1e-8

    def __post_init__(self) -> None:
        validate_weights(inter=self.inter, intra=self.intra)
        validate_temperature(self.temperature)
        validate_above_zero("eps", self.eps)
        validate_switches(t_squared=self.t_squared)


@dataclass(frozen=True, slots=True, kw_only=True)
class DIST(_Correlating):
    """One minus the correlation of probabilities, within samples and within classes.

    Without unit; mean over rows and over columns, times temperature**2 where t_squared, as in the authors' code. inter
    weighs the correlation within a sample, between classes; intra that within a class, between samples of the
    (micro-)batch: the paper's beta and gamma. Two classes or more. A row or column without spread, such as each column
    of a batch of one, counts as uncorrelated. eps is added to the product of the norms.

    Formula: T² · (inter (1 - mean over rows of corr(p, q)) + intra (1 - mean over columns of corr(p, q))), with p =
        softmax(t / T) and q = softmax(s / T)
    Shapes: logits (N, C)
    Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", arXiv:2205.10536
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum, least (0) where all rows and columns correlate fully."""
        same_outputs(student, target, self)
        several_classes(student, self)
        mine, theirs = ((full(each) / self.temperature).softmax(1) for each in (student, target))
        return _uncorrelated(mine, theirs, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelDIST(_Correlating):
    """DIST between the probabilities of labels that do not exclude each other: a sigmoid in place of the softmax.

    Unit, reduction and options as in DIST. inter then asks which labels a sample shows more than others, intra which
    samples show a label more than others.

    Formula: T² · (inter (1 - mean over rows of corr(p, q)) + intra (1 - mean over columns of corr(p, q))), with p =
        sigmoid(t / T) and q = sigmoid(s / T)
    Shapes: logits (N, C)
    Source: ours, after Huang et al. 2022, arXiv:2205.10536
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum, least (0) where all rows and columns correlate fully."""
        same_outputs(student, target, self)
        mine, theirs = ((full(each) / self.temperature).sigmoid() for each in (student, target))
        return _uncorrelated(mine, theirs, self)


def _uncorrelated(student: Tensor, target: Tensor, options: _Correlating) -> Tensor:
    """Return what is missing to full correlation of probabilities (batch, classes), by rows and by columns."""
    loss = student.new_zeros(())
    for weight, dim in ((options.inter, 1), (options.intra, 0)):
        loss = loss + weight * (1 - _correlation(student, target, dim, options.eps).mean())
    return loss * options.temperature**2 if options.t_squared else loss


def _correlation(student: Tensor, target: Tensor, dim: int, eps: float) -> Tensor:
    student, target = (each - each.mean(dim, keepdim=True) for each in (student, target))
    norms: Tensor = torch.linalg.vector_norm(student, dim=dim) * torch.linalg.vector_norm(target, dim=dim)
    return (student * target).sum(dim) / (norms + eps)
