"""Losses that take the class that is right apart from those that are not."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.features import full
from kdkit.losses.logits import kl
from kdkit.losses.validation import (
    one_answer_per_label,
    one_class_each,
    same_outputs,
    several_classes,
    validate_switches,
    validate_temperature,
    validate_weights,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DKD:
    """Divergence about the right class, and apart from it that among the others (decoupled distillation).

    In nats, summed over classes, mean over the batch, times temperature**2 where t_squared. alpha weighs right against
    not right, beta the others; the defaults are those of the authors' code. Two classes or more. Computed from logits
    throughout, so it is exact where a probability underflows and the authors' code is infinite. PaddleSlim averages
    over classes too.

    Formula: T²/N · Σ (alpha KL(b_t ‖ b_s) + beta KL(r_t ‖ r_s)), with b = (p[y], 1 - p[y]) for p = softmax(z / T), and
        r = softmax(z / T) over the classes other than y
    Shapes: logits (N, C); labels (N,)
    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation", arXiv:2203.08679
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    t_squared: bool = True

    needs = frozenset({"hard_labels"})

    def __post_init__(self) -> None:
        validate_weights(alpha=self.alpha, beta=self.beta)
        validate_temperature(self.temperature)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the weighted sum, least (0) where both give the same probabilities."""
        same_outputs(student, target, self)
        labels = one_class_each(labels, student, self)
        several_classes(student, self)
        student, target = full(student), full(target)
        right, others = _decoupled(student / self.temperature, labels)
        their_right, their_others = _decoupled(target / self.temperature, labels)
        loss = self.alpha * _divergence(right, their_right) + self.beta * _divergence(others, their_others)
        return loss * self.temperature**2 if self.t_squared else loss


@dataclass(frozen=True, slots=True, kw_only=True)
class NKD:
    """Cross-entropy to the teacher at the right class, and to its share of each other class (normalised distillation).

    In nats, mean over the batch. gamma and temperature concern the others, whose term is multiplied by temperature**2
    where t_squared; the right class is never softened. The defaults are those of the authors' code. Two classes or
    more. The cross-entropy to the labels is not in it: add Truth(...).

    Formula: -1/N · Σ (p[y] log q[y] + gamma T² Σ r_t log r_s), with p = softmax(t), q = softmax(s) and r = softmax(z /
        T) over the classes other than y
    Shapes: logits (N, C); labels (N,)
    Source: Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation", arXiv:2303.13005
    """

    gamma: float = 1.5
    temperature: float = 1.0
    t_squared: bool = True

    needs = frozenset({"hard_labels"})

    def __post_init__(self) -> None:
        validate_weights(gamma=self.gamma)
        validate_temperature(self.temperature)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the sum of both; more than 0, for the teacher's entropy is in it."""
        same_outputs(student, target, self)
        labels = one_class_each(labels, student, self)
        several_classes(student, self)
        student, target = full(student), full(target)
        right, sure = (F.log_softmax(each, 1).gather(1, labels[:, None]) for each in (student, target))
        _, others = _decoupled(student / self.temperature, labels)
        _, their_others = _decoupled(target / self.temperature, labels)
        rest = (their_others.softmax(1) * F.log_softmax(others, 1)).sum(1).mean()
        weight = self.gamma * (self.temperature**2 if self.t_squared else 1)
        return -(sure.exp() * right).mean() - weight * rest


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelDKD:
    """Divergence per label, that of the labels a sample has apart from that of those it has not (after DKD).

    Where every label is a question of its own, no class competes with another; what drowns is the few labels that are
    there among the many that are not. In nats, times temperature**2 where t_squared. alpha weighs the mean over the
    former, beta that over the latter. Labels may be mixed. Means are over the batch, so without any present label the
    first is 0.

    Formula: T² · (alpha Σ y d / Σ y + beta Σ (1 - y) d / Σ (1 - y)), with d = KL(Bernoulli(sigmoid(t / T)) ‖
        Bernoulli(sigmoid(s / T)))
    Shapes: logits (N, C); labels (N, C) in [0, 1]
    Source: ours, after Zhao et al. 2022, arXiv:2203.08679
    """

    alpha: float = 1.0
    beta: float = 1.0
    temperature: float = 1.0
    t_squared: bool = True

    def __post_init__(self) -> None:
        validate_weights(alpha=self.alpha, beta=self.beta)
        validate_temperature(self.temperature)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the weighted sum, least (0) where both give the same probabilities."""
        same_outputs(student, target, self)
        student, target = full(student), full(target)
        present = one_answer_per_label(labels, student, self)
        soft = target / self.temperature
        sure = soft.sigmoid()
        loss = F.binary_cross_entropy_with_logits(student / self.temperature, sure, reduction="none")
        loss = loss - F.binary_cross_entropy_with_logits(soft, sure, reduction="none")
        loss = self.alpha * _mean(loss, present) + self.beta * _mean(loss, 1 - present)
        return loss * self.temperature**2 if self.t_squared else loss


def _decoupled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of right and not right, (batch, 2), and those of the other classes, (batch, classes - 1)."""
    places = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    others = logits.gather(1, places + (places >= labels[:, None]).long())
    # log(1 - p) is never formed: not right has the logit that all others have together
    right = torch.stack([logits.gather(1, labels[:, None])[:, 0], others.logsumexp(1)], dim=1)
    return right, others


def _divergence(student: Tensor, target: Tensor) -> Tensor:
    """Return KL(target || student) of logits (batch, options), mean over the batch."""
    return kl(F.log_softmax(target, 1), F.log_softmax(student, 1)) / len(student)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean; 0 where all weights are."""
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, 1)
