"""Losses on logits."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.base import Loss, asked_by
from kdkit.losses.features import full
from kdkit.losses.validation import (
    Reduction,
    same_outputs,
    several_classes,
    validate_above_zero,
    validate_reduction,
    validate_share,
    validate_switches,
    validate_temperature,
)


def kl(of: Tensor, to: Tensor) -> Tensor:
    """Return the sum of KL(of || to) over all rows, from log probabilities, in nats; gradients flow to both.

    torch's own `kl_div` gives the same, but cannot be mapped over samples with `torch.func.vmap`.
    """
    return (of.exp() * (of - to)).sum()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReverseKL:
    """Kullback-Leibler divergence of the student to the teacher, which seeks a mode.

    In nats. reduction "batchmean" sums over all but the batch and averages over it; "mean" averages over all entries.
    t_squared multiplies by temperature**2; no public code that we know of does.

    Formula: 1/N · Σ q log(q / p), with p = softmax(t / T) and q = softmax(s / T)
    Shapes: logits (N, C), (N, tokens, C)
    Source: Gu et al. 2024, "MiniLLM: Knowledge Distillation of Large Language Models", arXiv:2306.08543, sec. 2.1
    """

    temperature: float = 1.0
    t_squared: bool = False
    reduction: Reduction = "batchmean"

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_reduction(self.reduction)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, least (0) where both give the same probabilities."""
        same_outputs(student, target, self, dense=True)
        loss = kl(_log_probabilities(student, self.temperature), _log_probabilities(target, self.temperature))
        return _reduced(loss, student, self.reduction) * (self.temperature**2 if self.t_squared else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralisedJSD:
    """Jensen-Shannon divergence, generalised by the share of each side in the mix (of GKD).

    In nats; reduction and t_squared as in ReverseKL. Between, it goes to 0 with beta or 1 - beta; at the ends it is, by
    convention, the whole KL(p ‖ q) for beta = 0 and KL(q ‖ p) for beta = 1. distillm writes lam = 1 - beta.
    PerToken(GeneralisedJSD()) averages over the tokens that have a label.

    Formula: 1/N · Σ (beta KL(p ‖ m) + (1 - beta) KL(q ‖ m)), with p = softmax(t / T), q = softmax(s / T) and m = beta p
        + (1 - beta) q
    Shapes: logits (N, C), (N, tokens, C)
    Source: Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        arXiv:2306.13649
    """

    beta: float = 0.5
    temperature: float = 1.0
    t_squared: bool = False
    reduction: Reduction = "batchmean"

    def __post_init__(self) -> None:
        validate_share("beta", self.beta)
        validate_temperature(self.temperature)
        validate_reduction(self.reduction)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, least (0) where both give the same probabilities."""
        same_outputs(student, target, self, dense=True)
        mine, theirs = (_log_probabilities(each, self.temperature) for each in (student, target))
        if self.beta == 0:
            loss = kl(theirs, mine)
        elif self.beta == 1:
            loss = kl(mine, theirs)
        else:
            mix = torch.logaddexp(math.log(self.beta) + theirs, math.log1p(-self.beta) + mine)
            loss = self.beta * kl(theirs, mix) + (1 - self.beta) * kl(mine, mix)
        return _reduced(loss, student, self.reduction) * (self.temperature**2 if self.t_squared else 1)


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(full(logits) / temperature, dim=-1)


def _reduced(loss: Tensor, student: Tensor, reduction: Reduction) -> Tensor:
    return loss / (student.numel() if reduction == "mean" else len(student))


@dataclass(frozen=True, slots=True)
class PerToken:
    """A loss on outputs, over the tokens that have a label, each as a sample.

    The unit and the reduction are those of `loss`, over (kept tokens, classes), as in trl; 0 where none is kept.
    ignore: the label of tokens that are left out. loss: one without weights of its own; it is given the labels of the
    kept tokens if it asks for them.

    Formula: loss(s[k], t[k]), with k the tokens whose label is not `ignore`
    Shapes: logits (N, tokens, C); labels (N, tokens)
    Source: public code: trl, GKDTrainer; Agarwal et al. 2024, arXiv:2306.13649
    """

    loss: Loss
    ignore: int = -100

    def __post_init__(self) -> None:
        if isinstance(self.ignore, bool) or not isinstance(self.ignore, int):
            raise RecipeError(f"ignore is the whole number that stands for no label, such as -100; got {self.ignore!r}")
        plain = callable(self.loss) and not isinstance(self.loss, type) and not hasattr(self.loss, "build")
        if not plain or asked_by(self.loss) - {"labels"}:
            raise RecipeError(f"PerToken takes a loss on outputs without weights, ids or progress; got {self.loss!r}")

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the loss over the kept tokens."""
        if labels.shape != student.shape[:-1]:
            raise RecipeError(
                f"PerToken needs a label for every token, of shape {tuple(student.shape[:-1])}; got {tuple(labels.shape)}"
            )
        kept = labels != self.ignore
        if not kept.any():
            return student.sum() * 0.0
        asked = {"labels": labels[kept]} if asked_by(self.loss) else {}
        return self.loss(student[kept], target[kept], **asked)
