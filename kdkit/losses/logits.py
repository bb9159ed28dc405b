"""Losses on logits: divergences between softened probabilities, and squared errors."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.losses.numerics import least_norm, standardise, upcast_half
from kdkit.losses.validation import (
    Reduction,
    require_same_outputs,
    require_two_classes,
    validate_above_zero,
    validate_reduction,
    validate_share,
    validate_switches,
    validate_temperature,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftenedLoss:
    """Base class of losses on softened outputs, with their options. Subclasses may have other defaults."""

    temperature: float = 1.0
    t_squared: bool = False
    reduction: Reduction = "batchmean"

    per_position = True
    mean_over_rows = True

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_reduction(self.reduction)
        validate_switches(t_squared=self.t_squared)

    def _log_probabilities(self, student: Tensor, target: Tensor, *, dense: bool = True) -> tuple[Tensor, Tensor]:
        """Return the softened log probabilities of both sides. Raises RecipeError if the shapes differ.

        dense: whether outputs may have more dimensions than (batch, classes); the last one is the classes.
        """
        require_same_outputs(student, target, self, dense=dense)
        return log_probabilities(student, self.temperature), log_probabilities(target, self.temperature)

    def _reduce(self, total: Tensor, student: Tensor) -> Tensor:
        loss = reduce_sum(total, student, self.reduction)
        return loss * self.temperature**2 if self.t_squared else loss


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftTargets(SoftenedLoss):
    """Kullback-Leibler divergence from the softened student to the softened teacher: soft targets.

    In nats. reduction "batchmean" sums over classes and averages over the batch; "mean" averages over both, a factor of
    1/classes. t_squared multiplies by temperature**2, so that the size of the gradient does not depend on the
    temperature; the authors of LRH-Net leave it out.

    Formula: T²/N · Σ p log(p / q), with p = softmax(t / T) and q = softmax(s / T)
    Shapes: logits (N, C)
    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, sec. 2
    """

    temperature: float = 4.0
    t_squared: bool = True

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if both sides give the same probabilities."""
        student_log, target_log = self._log_probabilities(student, target, dense=False)
        # sec. 2: gradients of the soft targets scale as 1/T², which the factor of t_squared compensates
        return self._reduce(kl_sum(target_log, student_log), student)

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
        """Return the divergence between peers of deep mutual learning (DML), without a temperature.

        Formula: 1/N · Σ p log(p / q), with p = softmax(t) and q = softmax(s)
        Shapes: logits (N, C)
        Source: Zhang et al. 2018, "Deep Mutual Learning", arXiv:1706.00384
        """
        return cls(temperature=1.0, t_squared=False, reduction="batchmean")


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelSoftTargets(SoftenedLoss):
    """Kullback-Leibler divergence between the two Bernoulli distributions of every label, softened by a temperature.

    The multi-label form of soft targets: a sigmoid per class keeps the teacher's absolute confidence, which a softmax
    over the classes loses. In nats. reduction "mean" averages over batch and classes, the scale of BCEWithLogitsLoss;
    "batchmean" sums over classes and averages over the batch. entropy=True keeps the teacher's entropy, which gives the
    plain cross-entropy: the same gradient, with a minimum above 0.

    Formula: T²/(N C) · Σ (p log(p / q) + (1 - p) log((1 - p) / (1 - q))), with p = sigmoid(t / T) and q = sigmoid(s /
        T)
    Shapes: logits (N, C)
    Source: ours, after Hinton et al. 2015, arXiv:1503.02531
    """

    t_squared: bool = True
    reduction: Reduction = "mean"
    entropy: bool = False

    def __post_init__(self) -> None:
        super(PerLabelSoftTargets, self).__post_init__()
        validate_switches(entropy=self.entropy)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0, unless entropy=True) if both sides give the same probabilities."""
        require_same_outputs(student, target, self, dense=True)
        student, target = upcast_half(student) / self.temperature, upcast_half(target) / self.temperature
        if self.entropy:
            loss = F.binary_cross_entropy_with_logits(student, target.sigmoid(), reduction="sum")
        else:
            loss = bernoulli_kl(student, target, reduction="sum")
        return self._reduce(loss, student)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitMSE(SoftenedLoss):
    """Mean squared error between logits. Unlike a softmax, it takes their offset into account.

    In squared units of a logit. reduction "mean" averages over batch and classes; "batchmean" sums over classes and
    averages over the batch, which is twice the paper's loss. A temperature divides both sides, and t_squared undoes its
    effect on the scale; TextBrewer does not undo it.

    Formula: 1/(N C) · Σ ((s - t) / T)²
    Shapes: logits (N, C)
    Source: Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", arXiv:1312.6184, sec. 2.2
    """

    reduction: Reduction = "mean"

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, minimal (0) if the logits are equal."""
        require_same_outputs(student, target, self)
        loss = F.mse_loss(upcast_half(student) / self.temperature, upcast_half(target) / self.temperature)
        if self.reduction == "batchmean":
            loss = loss * (student.numel() / len(student))
        return loss * self.temperature**2 if self.t_squared else loss


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitStandardisation(SoftenedLoss):
    """Soft targets between standardised logits, so that the student need not match the scale of the teacher's.

    In nats; reduction and t_squared as in SoftTargets. The mean of each row is subtracted, and the row is divided by
    its standard deviation (with classes - 1, as in the authors' code) plus eps. Needs at least two classes. A row of
    equal logits becomes 0 and gets no gradient; in the authors' code its gradient is about 1 / eps, which exceeds the
    range of fp16. masked=True leaves out classes that either side masks by a logit of -inf, which would make the loss
    NaN; this takes 1.5 times as long.

    Formula: T²/N · Σ p log(p / q), with p = softmax(z(t) / T), q = softmax(z(s) / T) and z(x) = (x - mean x) / (std x +
        eps)
    Shapes: logits (N, C)
    Source: Sun et al. 2024, "Logit Standardization in Knowledge Distillation", arXiv:2403.01427
    """

    temperature: float = 2.0
    t_squared: bool = True
    eps: float = 1e-7
    masked: bool = False

    def __post_init__(self) -> None:
        super(LogitStandardisation, self).__post_init__()
        validate_switches(masked=self.masked)
        validate_above_zero("eps", self.eps)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if the rows are equal up to scale and offset."""
        require_same_outputs(student, target, self)
        require_two_classes(student, self)
        student_log, target_log = (
            log_probabilities(self.standardise(side), self.temperature) for side in (student, target)
        )
        return self._reduce(kl_sum(target_log, student_log), student)

    def standardise(self, logits: Tensor) -> Tensor:
        """Return logits (batch, classes) with mean 0 and standard deviation 1 in every row, over unmasked classes."""
        # the paper's Z-score, whose temperature is applied in the softmax
        if not self.masked:
            return standardise(logits, 1, self.eps)
        numbers = upcast_half(logits)
        absent = numbers == -math.inf
        count = logits.shape[1] - absent.sum(1, keepdim=True, dtype=numbers.dtype)
        mean = numbers.masked_fill(absent, 0).sum(1, keepdim=True) / count
        centred = (numbers - mean).masked_fill(absent, 0)
        variance = centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
        # a row without spread becomes 0, and so does its gradient, which would otherwise be about 1 / eps
        has_spread = variance > least_norm(logits) ** 2
        deviation = torch.where(has_spread, variance, 1).sqrt() + self.eps
        return torch.where(has_spread, centred / deviation, 0).masked_fill(absent, -math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReverseKL(SoftenedLoss):
    """Kullback-Leibler divergence from the teacher to the student, which is mode-seeking.

    In nats. reduction "batchmean" sums over all other dimensions and averages over the batch; "mean" averages over all
    entries. t_squared multiplies by temperature**2, which no public code known to us does.

    Formula: 1/N · Σ q log(q / p), with p = softmax(t / T) and q = softmax(s / T)
    Shapes: logits (N, C), (N, tokens, C)
    Source: Gu et al. 2024, "MiniLLM: Knowledge Distillation of Large Language Models", arXiv:2306.08543, sec. 2.1
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if both sides give the same probabilities."""
        student_log, target_log = self._log_probabilities(student, target)
        return self._reduce(kl_sum(student_log, target_log), student)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralisedJSD(SoftenedLoss):
    """Jensen-Shannon divergence, generalised by the weight of each side in the mixture (GKD).

    In nats; reduction and t_squared as in ReverseKL. It approaches 0 as beta approaches 0 or 1. By convention beta = 0
    gives KL(p ‖ q) and beta = 1 gives KL(q ‖ p), both unscaled. distillm writes lam = 1 - beta.
    PerToken(GeneralisedJSD()) averages over the tokens that have a label.

    Formula: 1/N · Σ (beta KL(p ‖ m) + (1 - beta) KL(q ‖ m)), with p = softmax(t / T), q = softmax(s / T) and m = beta p
        + (1 - beta) q
    Shapes: logits (N, C), (N, tokens, C)
    Source: Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        arXiv:2306.13649
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        super(GeneralisedJSD, self).__post_init__()
        validate_share("beta", self.beta)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if both sides give the same probabilities."""
        student_log, target_log = self._log_probabilities(student, target)
        if self.beta == 0:
            loss = kl_sum(target_log, student_log)
        elif self.beta == 1:
            loss = kl_sum(student_log, target_log)
        else:
            target_log, student_log = clamp_masked(target_log), clamp_masked(student_log)
            mixture = mixture_log(target_log, student_log, self.beta)
            forward, backward = (kl_sum(side, mixture, finite=True) for side in (target_log, student_log))
            loss = self.beta * forward + (1 - self.beta) * backward
        return self._reduce(loss, student)


def kl_sum(first_log: Tensor, second_log: Tensor, *, finite: bool = False) -> Tensor:
    """Return KL(first ‖ second) from log probabilities, in nats, summed over all rows; gradients flow to both.

    It is infinite if `second` masks a class, by a log probability of -inf, that `first` does not mask. torch's `kl_div`
    is NaN if both mask it, and `torch.func.vmap` cannot map it over samples. finite: whether all log probabilities are
    finite, so that no class needs to be checked for a mask.
    """
    if finite:
        return (first_log.exp() * (first_log - second_log)).sum()
    return kl_terms(first_log, second_log).sum()


def kl_terms(first_log: Tensor, second_log: Tensor) -> Tensor:
    """Return the terms of KL(first ‖ second), p log(p / q), of the shape of both. A class that `first` masks adds 0."""
    probability = first_log.exp()
    difference = first_log - second_log
    # 0 * inf and inf - inf are NaN, but the limit of p log(p / q) is 0. The gradient is a multiple of p, so it is 0 as
    # well, and need not record the assignment. `logical_not` takes half the time of a comparison with 0.
    difference.detach().masked_fill_(probability.logical_not(), 0)
    return probability * difference


def cross_terms(probability: Tensor, other_log: Tensor) -> Tensor:
    """Return the terms p log q of a cross-entropy, of the shape of both. A class of probability 0 adds 0."""
    return probability * other_log.masked_fill(probability == 0, 0)


def bernoulli_kl(student: Tensor, target: Tensor, *, reduction: str) -> Tensor:
    """Return KL(target ‖ student) of a Bernoulli distribution for each label, in nats, from logits (batch, labels).

    reduction: "none", "mean" or "sum", as in torch.
    """
    probability = target.sigmoid()
    # KL = cross-entropy - entropy, both from logits, which stays finite if a sigmoid saturates
    loss = F.binary_cross_entropy_with_logits(student, probability, reduction=reduction)
    return loss - F.binary_cross_entropy_with_logits(target, probability, reduction=reduction)


def mixture_log(first_log: Tensor, second_log: Tensor, share: float) -> Tensor:
    """Return log(share * p + (1 - share) * q) from log probabilities, which `clamp_masked` made finite.

    share: in (0, 1). Computed from log probabilities, so that probabilities cannot underflow.
    """
    return torch.logaddexp(math.log(share) + first_log, math.log1p(-share) + second_log)


def clamp_masked(log: Tensor) -> Tensor:
    """Return log probabilities with the least finite number in place of -inf.

    The gradient of logaddexp at (-inf, -inf) is NaN, which a class that both sides mask would get.
    """
    return log.clamp(min=torch.finfo(log.dtype).min)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Return the logarithm of the softmax of logits / temperature over the last dimension, in float32 or better."""
    return F.log_softmax(upcast_half(logits) / temperature, dim=-1)


def reduce_sum(total: Tensor, student: Tensor, reduction: Reduction) -> Tensor:
    """Return a sum over all entries divided by the number of entries ("mean") or of samples ("batchmean")."""
    return total / (student.numel() if reduction == "mean" else len(student))
