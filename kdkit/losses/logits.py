"""Losses between the outputs of a student and of a teacher for one class out of many."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.conditions import (
    Reduction,
    several_classes,
    validate_above_zero,
    validate_reduction,
    validate_temperature,
)
from kdkit.losses.projected import full


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftTargets:
    """Kullback-Leibler divergence of the softened teacher to the softened student (Hinton et al. 2015, sec. 2).

    Both (batch, classes) logits -> scalar, in nats. reduction "batchmean" sums over classes and averages over the
    batch; "mean" averages over both, which is 1/classes of it. t_squared multiplies by temperature**2, so that the
    gradient keeps its size when the temperature changes; the authors of LRH-Net leave it out.
    """

    temperature: float = 4.0
    t_squared: bool = True
    reduction: Reduction = "batchmean"

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_reduction(self.reduction)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, least (0) where both give the same probabilities."""
        student = F.log_softmax(full(student) / self.temperature, dim=1)
        target = F.log_softmax(full(target) / self.temperature, dim=1)
        loss = F.kl_div(student, target, reduction="sum", log_target=True)  # torch's "mean" is to change its meaning
        loss = loss / (student.numel() if self.reduction == "mean" else len(student))
        return loss * self.temperature**2 if self.t_squared else loss

    @classmethod
    def deit(cls, *, temperature: float = 1.0) -> Self:
        """Return the soft term at the scale of DeiT's code: 1/classes of Hinton's (Touvron et al. 2021, eq. 2)."""
        return cls(temperature=temperature, t_squared=True, reduction="mean")

    @classmethod
    def modelopt(cls, *, temperature: float = 1.0) -> Self:
        """Return the divergence at the scale of NVIDIA Model Optimizer's default: 1/classes of Hinton's."""
        return cls(temperature=temperature, t_squared=True, reduction="mean")

    @classmethod
    def mutual(cls) -> Self:
        """Return the divergence from a peer, without temperature, of mutual learning (DML, Zhang et al. 2018)."""
        return cls(temperature=1.0, t_squared=False, reduction="batchmean")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitMSE:
    """Mean squared error between logits, which keeps what a softmax loses: their offset (Ba & Caruana 2014, eq. 1).

    Both (batch, classes) logits -> scalar, in squared units of a logit. reduction "mean" averages over batch and
    classes; "batchmean" sums over classes and averages over the batch (twice the paper's). A temperature divides both
    sides, and t_squared undoes its effect on the scale; TextBrewer divides and does not undo.
    """

    temperature: float = 1.0
    t_squared: bool = False
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_reduction(self.reduction)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, least (0) where the logits are equal."""
        loss = F.mse_loss(full(student) / self.temperature, full(target) / self.temperature)
        if self.reduction == "batchmean":
            loss = loss * (student.numel() / len(student))
        return loss * self.temperature**2 if self.t_squared else loss


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitStandardisation:
    """Soft targets between standardised logits, so that the student need not match their size (Sun et al. 2024).

    Both (batch, classes) logits, two classes or more -> scalar, in nats; reduction and t_squared as in SoftTargets.
    Each row loses its mean and is divided by its deviation (of classes - 1, as in the authors' code) plus eps.
    arXiv:2403.01427.
    """

    temperature: float = 2.0
    t_squared: bool = True
    reduction: Reduction = "batchmean"
    eps: float = 1e-7

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_reduction(self.reduction)
        validate_above_zero("eps", self.eps)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, least (0) where one row is the other, scaled and shifted."""
        several_classes(student, self)
        soft = SoftTargets(temperature=self.temperature, t_squared=self.t_squared, reduction=self.reduction)
        return soft(self.standardised(full(student)), self.standardised(full(target)))

    def standardised(self, logits: Tensor) -> Tensor:
        """Return logits (batch, classes) of mean 0 and deviation 1 in every row."""
        centred = logits - logits.mean(1, keepdim=True)
        return centred / (centred.std(1, keepdim=True) + self.eps)
