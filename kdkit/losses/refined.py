"""Soft targets from a teacher that is transformed (TTM), corrected (RLD, OFA) or weighted by the labels (WSLD)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.decoupled import decouple, divergence, other_columns
from kdkit.losses.logits import bernoulli_kl, cross_terms, kl_terms, log_probabilities
from kdkit.losses.numerics import upcast_half
from kdkit.losses.validation import (
    is_number,
    require_class_labels,
    require_label_matrix,
    require_same_outputs,
    require_two_classes,
    validate_above_zero,
    validate_switches,
    validate_temperature,
    validate_weights,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TTM:
    """Divergence from the student to the teacher's probabilities raised to a power (transformed teacher matching).

    In nats, summed over classes, mean over the batch. The power softens the teacher as the temperature 1 / power would;
    the student has no temperature, which adds a penalty on its Rényi entropy to soft targets. power: the paper's gamma,
    in (0, 1] to soften. The default is that of the authors' example; their code's default of 1 changes nothing.

    Formula: 1/N · Σ r log(r / q), with r = p^power / Σ p^power, p = softmax(t) and q = softmax(s)
    Shapes: logits (N, C)
    Source: Zheng and Yang 2024, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv:2402.11148
    """

    power: float = 0.1

    per_position = True
    mean_over_rows = True

    def __post_init__(self) -> None:
        if not is_number(self.power) or self.power <= 0:
            raise RecipeError(
                f"power is an exponent of probabilities above 0, in (0, 1] to soften them; got {self.power!r}"
            )

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if the student gives the transformed probabilities."""
        require_same_outputs(student, target, self)
        # p^power / Σ p^power = softmax(power · t), which cannot underflow
        refined = F.log_softmax(upcast_half(target) * self.power, 1)
        return kl_terms(refined, F.log_softmax(upcast_half(student), 1)).sum(1).mean()


@dataclass(frozen=True, slots=True, kw_only=True)
class WTTM(TTM):
    """TTM with a weight for each sample, larger if the teacher is less sure of it (weighted TTM).

    In nats, mean over the batch of weight times divergence. The weight is Σ p^power over classes, from 1 for a teacher
    that is certain to C^(1 - power) for one that is not. power as in TTM; the default is that of the authors' example.

    Formula: 1/N · Σ u Σ r log(r / q), with u = Σ p^power, r = p^power / u, p = softmax(t) and q = softmax(s)
    Shapes: logits (N, C)
    Source: Zheng and Yang 2024, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv:2402.11148
    """

    power: float = 0.2

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted divergence, minimal (0) if the student gives the transformed probabilities."""
        require_same_outputs(student, target, self)
        powers = F.log_softmax(upcast_half(target), 1) * self.power
        weight = powers.logsumexp(1).exp()
        divergences = kl_terms(F.log_softmax(powers, 1), F.log_softmax(upcast_half(student), 1)).sum(1)
        return (weight * divergences).mean()


@dataclass(frozen=True, slots=True, kw_only=True)
class WSLD:
    """Soft targets with a weight for each sample, larger if the student is worse on its label than the teacher (WSLD).

    In nats, summed over classes, mean over the batch, times temperature**2 if t_squared. The weight is in [0, 1] and
    gets no gradient. It follows from the ratio of the cross-entropies of both sides with the label, at a temperature of
    1: 0.63 if they are equal. eps is added to the teacher's; a label that the teacher masks by -inf gives a weight of
    0. The default temperature is the authors'; they give the term a weight of 2.5 next to the labels. Their code uses
    the cross-entropy with the teacher's probabilities, which has the same gradient but is not 0 for equal sides.

    Formula: T²/N · Σ w KL(p ‖ q), with p = softmax(t / T), q = softmax(s / T), w = 1 - exp(-a / (b + eps)), a = -log
        softmax(s)[y] and b = -log softmax(t)[y]
    Shapes: logits (N, C); labels (N,)
    Source: Zhou et al. 2021, "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
        arXiv:2102.00650, and its authors' code
    """

    temperature: float = 2.0
    t_squared: bool = True
    eps: float = 1e-7

    per_position = True
    mean_over_rows = True
    requires = frozenset({"hard_labels"})

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_switches(t_squared=self.t_squared)
        validate_above_zero("eps", self.eps)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the weighted divergence, minimal (0) if both sides give the same probabilities."""
        require_same_outputs(student, target, self)
        labels = require_class_labels(labels, student, self)
        student_log, target_log = (log_probabilities(side, self.temperature) for side in (student, target))
        weights = self.weights(student.detach(), target, labels)
        loss = (weights * kl_terms(target_log, student_log).sum(1)).mean()
        return loss * self.temperature**2 if self.t_squared else loss

    def weights(self, student: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """Return the weights of the samples, (batch,)."""
        student_error, target_error = (
            -log_probabilities(side, 1).gather(1, labels[:, None]).squeeze(1) for side in (student, target)
        )
        weights = -torch.expm1(-student_error / (target_error + self.eps))
        return weights.masked_fill(target_error == math.inf, 0)  # inf / inf, if the student masks the label too


@dataclass(frozen=True, slots=True, kw_only=True)
class RLD:
    """Soft targets that are corrected by the labels if the teacher is wrong (refined logit distillation).

    In nats, summed over classes, mean over the batch. The first term, weighted by alpha, moves the student's
    probability of the correct class to that of the teacher's top class. The second, weighted by beta, compares the
    classes that the teacher ranks below the correct one, so classes that it wrongly prefers are left out. Each is
    multiplied by the square of its temperature if t_squared. The defaults are those of the authors' code, in which both
    terms are scaled up linearly over the first 20 of 240 epochs: give the term the weight LinearRamp(until=1 / 12).
    Needs at least two classes. Computed from logits throughout; the authors' code is infinite if a probability
    underflows.

    Formula: 1/N · Σ (alpha A² KL(a_t ‖ a_s) + beta T² KL(r_t ‖ r_s)), with a_s = (q[y], 1 - q[y]) and a_t = (max p, 1 -
        max p) at the temperature A = confidence_temperature, and r = softmax(z / T) over the classes with t < t[y]
    Shapes: logits (N, C); labels (N,)
    Source: Sun et al. 2025, "Knowledge Distillation with Refined Logits", arXiv:2408.07703
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    confidence_temperature: float = 1.0
    t_squared: bool = True

    per_position = True
    mean_over_rows = True
    requires = frozenset({"hard_labels"})

    def __post_init__(self) -> None:
        validate_weights(alpha=self.alpha, beta=self.beta)
        validate_temperature(self.temperature)
        validate_temperature(self.confidence_temperature)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the weighted sum, minimal (0) if the student has the corrected probabilities."""
        require_same_outputs(student, target, self)
        labels = require_class_labels(labels, student, self)
        require_two_classes(student, self)
        student, target = upcast_half(student), upcast_half(target)
        # sample confidence: (correct, others) of the student, (top, others) of the teacher
        student_binary, target_binary = (
            decouple(side / self.confidence_temperature, classes, other_columns(classes, side.shape[1]))[0]
            for side, classes in ((student, labels), (target, target.argmax(1)))
        )
        confidence = self.alpha * divergence(student_binary, target_binary)
        # masked correlation: without the correct class and those that the teacher ranks above it
        masked = target >= target.gather(1, labels[:, None])
        # Not -inf, because a softmax over only masked classes would be NaN. A sample adds 0 if no class is below the
        # correct one, or if a side gives these classes a logit of -inf.
        least = torch.finfo(torch.float32).min  # also for a float64 side: its minimum would overflow the other one
        student_rest, target_rest = ((side / self.temperature).masked_fill(masked, least) for side in (student, target))
        left_out = torch.minimum(student_rest.amax(1, keepdim=True), target_rest.amax(1, keepdim=True)) <= least
        correlation = self.beta * divergence(student_rest, target_rest, left_out=left_out)
        if not self.t_squared:
            return confidence + correlation
        return confidence * self.confidence_temperature**2 + correlation * self.temperature**2


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelRLD:
    """Divergence per label, without the labels on which the teacher is wrong (after RLD).

    In nats, mean over batch and classes, times temperature**2 if t_squared. If the teacher gives an absent label a
    probability above 0.5, or a present label one below 0.5, the label adds 0, so the student learns it from the labels
    alone: add Truth(...). A mixed label counts as present above 0.5.

    Formula: T²/(N C) · Σ c KL(Bernoulli(p) ‖ Bernoulli(q)), with p = sigmoid(t / T), q = sigmoid(s / T), and c = 1 if t
        > 0 agrees with y > 0.5, else 0
    Shapes: logits (N, C); labels (N, C) in [0, 1]
    Source: ours, after Sun et al. 2025, arXiv:2408.07703
    """

    temperature: float = 1.0
    t_squared: bool = True

    per_position = True

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if both give the same probabilities for labels the teacher is right on."""
        require_same_outputs(student, target, self)
        student, target = upcast_half(student), upcast_half(target)
        agrees = (target > 0) == (require_label_matrix(labels, student, self) > 0.5)
        loss = bernoulli_kl(student / self.temperature, target / self.temperature, reduction="none")
        loss = (loss * agrees).mean()
        return loss * self.temperature**2 if self.t_squared else loss


@dataclass(frozen=True, slots=True, kw_only=True)
class OFA:
    """Cross-entropy with the teacher's probabilities, in which the correct class is raised (one for all, OFA).

    In nats, summed over classes, mean over the batch, times temperature**2 if t_squared, which the authors' code leaves
    out. gamma raises the correct class relative to the others; at 1, the loss is the plain cross-entropy. This is the
    form of the authors' code, which also raises the other classes to this power (called eps there, between 1 and 1.5).
    The cross-entropy with the labels is a separate term: Truth(...). Their code computes log(softmax(x)), which is
    infinite for confident students; here it is log_softmax(x).

    The authors compare each stage of the student with the teacher's outputs. SecondHead adds the exit of a stage:
    Match(teacher, SecondHead(OFA(), blocks=2), student=Tap(net.module.layer2)), with fewer blocks for deeper stages.

    Formula: -1/N · Σ w log q, with w = (1 + p)^gamma - 1 for the correct class, w = p^gamma for the others, p =
        softmax(t / T) and q = softmax(s / T)
    Shapes: logits (N, C); labels (N,)
    Source: Hao et al. 2023, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
        Distillation", arXiv:2310.19444, and its authors' code
    """

    gamma: float = 1.0
    temperature: float = 1.0
    t_squared: bool = False

    per_position = True
    requires = frozenset({"hard_labels"})

    def __post_init__(self) -> None:
        validate_above_zero("gamma", self.gamma)
        validate_temperature(self.temperature)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the cross-entropy, which is above 0 because it includes the teacher's entropy."""
        require_same_outputs(student, target, self)
        labels = require_class_labels(labels, student, self)
        student_log = F.log_softmax(upcast_half(student) / self.temperature, dim=1)
        target_log = F.log_softmax(upcast_half(target) / self.temperature, dim=1)
        correct = labels[:, None] == torch.arange(student.shape[1], device=student.device)
        # p^gamma from log p, whose gradient is finite at p = 0; (1 + p)^gamma - 1 without cancellation
        others = (self.gamma * target_log).exp()
        raised = torch.expm1(self.gamma * target_log.exp().log1p())
        loss = -cross_terms(torch.where(correct, raised, others), student_log).sum() / len(student)
        return loss * self.temperature**2 if self.t_squared else loss
