"""Losses between the outputs of a student and of a teacher for one class out of many."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.conditions import (
    Reduction,
    same_outputs,
    several_classes,
    validate_above_zero,
    validate_reduction,
    validate_switches,
    validate_temperature,
)
from kdkit.losses.kl import kl
from kdkit.losses.projected import full


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftTargets:
    """Kullback-Leibler divergence of the softened teacher to the softened student: soft targets.

    In nats. reduction "batchmean" sums over classes and averages over the batch; "mean" averages over both, which is
    1/classes of it. t_squared multiplies by temperature**2, so that the gradient keeps its size when the temperature
    changes; the authors of LRH-Net leave it out.

    Formula: T²/N · Σ p log(p / q), with p = softmax(t / T) and q = softmax(s / T)
    Shapes: logits (N, C)
    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, sec. 2
    """

    temperature: float = 4.0
    t_squared: bool = True
    reduction: Reduction = "batchmean"

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_reduction(self.reduction)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, least (0) where both give the same probabilities."""
        same_outputs(student, target, self)
        student = F.log_softmax(full(student) / self.temperature, dim=1)
        target = F.log_softmax(full(target) / self.temperature, dim=1)
        loss = kl(target, student) / (student.numel() if self.reduction == "mean" else len(student))
        return loss * self.temperature**2 if self.t_squared else loss

    @classmethod
    def deit(cls, *, temperature: float = 1.0) -> Self:
        """Return the soft term at the scale of DeiT's code, 1/classes of Hinton's.

        Formula: T²/(N C) · Σ p log(p / q), with p = softmax(t / T) and q = softmax(s / T)
        Shapes: logits (N, C)
        Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention",
            arXiv:2012.12877, eq. 2
        """
        return cls(temperature=temperature, t_squared=True, reduction="mean")

    @classmethod
    def modelopt(cls, *, temperature: float = 1.0) -> Self:
        """Return the divergence at the scale of NVIDIA Model Optimizer's default, 1/classes of Hinton's.

        Formula: T²/(N C) · Σ p log(p / q), with p = softmax(t / T) and q = softmax(s / T)
        Shapes: logits (N, C)
        Source: public code: NVIDIA Model Optimizer, LogitsDistillationLoss
        """
        return cls(temperature=temperature, t_squared=True, reduction="mean")

    @classmethod
    def mutual(cls) -> Self:
        """Return the divergence from a peer, without temperature, of deep mutual learning (DML).

        Formula: 1/N · Σ p log(p / q), with p = softmax(t) and q = softmax(s)
        Shapes: logits (N, C)
        Source: Zhang et al. 2018, "Deep Mutual Learning", arXiv:1706.00384
        """
        return cls(temperature=1.0, t_squared=False, reduction="batchmean")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitMSE:
    """Mean squared error between logits, which keeps what a softmax loses: their offset.

    In squared units of a logit. reduction "mean" averages over batch and classes; "batchmean" sums over classes and
    averages over the batch, twice the paper's. A temperature divides both sides, and t_squared undoes its effect on the
    scale; TextBrewer divides and does not undo.

    Formula: 1/(N C) · Σ ((s - t) / T)²
    Shapes: logits (N, C)
    Source: Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", arXiv:1312.6184, sec. 2.2
    """

    temperature: float = 1.0
    t_squared: bool = False
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_reduction(self.reduction)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, least (0) where the logits are equal."""
        same_outputs(student, target, self)
        loss = F.mse_loss(full(student) / self.temperature, full(target) / self.temperature)
        if self.reduction == "batchmean":
            loss = loss * (student.numel() / len(student))
        return loss * self.temperature**2 if self.t_squared else loss


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitStandardisation:
    """Soft targets between standardised logits, so that the student need not match their size.

    In nats; reduction and t_squared as in SoftTargets. Each row loses its mean and is divided by its deviation (of
    classes - 1, as in the authors' code) plus eps. Two classes or more.

    Formula: T²/N · Σ p log(p / q), with p = softmax(z(t) / T), q = softmax(z(s) / T) and z(x) = (x - mean x) / (std x +
        eps)
    Shapes: logits (N, C)
    Source: Sun et al. 2024, "Logit Standardization in Knowledge Distillation", arXiv:2403.01427
    """

    temperature: float = 2.0
    t_squared: bool = True
    reduction: Reduction = "batchmean"
    eps: float = 1e-7

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_reduction(self.reduction)
        validate_switches(t_squared=self.t_squared)
        validate_above_zero("eps", self.eps)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, least (0) where one row is the other, scaled and shifted."""
        same_outputs(student, target, self)
        several_classes(student, self)
        soft = SoftTargets(temperature=self.temperature, t_squared=self.t_squared, reduction=self.reduction)
        return soft(self.standardised(full(student)), self.standardised(full(target)))

    def standardised(self, logits: Tensor) -> Tensor:
        """Return logits (batch, classes) of mean 0 and deviation 1 in every row."""
        centred = logits - logits.mean(1, keepdim=True)
        return centred / (centred.std(1, keepdim=True) + self.eps)
