"""Losses that treat the correct class and the other classes separately (DKD, its multi-label form, NKD, Margin-MSE)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.losses.logits import bernoulli_kl, cross_terms, kl_sum
from kdkit.losses.numerics import upcast_half
from kdkit.losses.validation import (
    require_class_labels,
    require_label_matrix,
    require_same_outputs,
    require_two_classes,
    validate_switches,
    validate_temperature,
    validate_weights,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DKD:
    """Divergence of correct against incorrect, plus that among the incorrect classes (decoupled distillation).

    In nats, summed over classes, mean over the batch, times temperature**2 if t_squared. alpha weighs the first term,
    beta the second; the defaults are those of the authors' code for CIFAR-100. There, the loss is scaled up linearly
    over the first 20 of 240 epochs: give the term the weight LinearRamp(until=1 / 12). Needs at least two classes. It
    is computed from logits throughout, so it is exact even if a probability underflows; the authors' code is then
    infinite. PaddleSlim averages over classes too.

    Formula: T²/N · Σ (alpha KL(b_t ‖ b_s) + beta KL(r_t ‖ r_s)), with b = (p[y], 1 - p[y]) for p = softmax(z / T), and
        r = softmax(z / T) over the classes other than y
    Shapes: logits (N, C); labels (N,)
    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation", arXiv:2203.08679
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    t_squared: bool = True

    per_position = True
    mean_over_rows = True
    requires = frozenset({"hard_labels"})

    def __post_init__(self) -> None:
        validate_weights(alpha=self.alpha, beta=self.beta)
        validate_temperature(self.temperature)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the weighted sum, minimal (0) if both sides give the same probabilities."""
        require_same_outputs(student, target, self)
        labels = require_class_labels(labels, student, self)
        require_two_classes(student, self)
        student, target = upcast_half(student), upcast_half(target)
        columns = other_columns(labels, student.shape[1])
        student_binary, student_rest, student_is_alone = decouple(student / self.temperature, labels, columns)
        target_binary, target_rest, target_is_alone = decouple(target / self.temperature, labels, columns)
        # eq. 7: TCKD over (correct, incorrect) and NCKD over the incorrect classes
        tckd = divergence(student_binary, target_binary)
        nckd = divergence(student_rest, target_rest, left_out=student_is_alone | target_is_alone)
        loss = self.alpha * tckd + self.beta * nckd
        return loss * self.temperature**2 if self.t_squared else loss


@dataclass(frozen=True, slots=True, kw_only=True)
class NKD:
    """Cross-entropy with the teacher at the correct class, plus that of the other classes, normalised (normalised KD).

    In nats, mean over the batch. gamma and temperature apply to the other classes, whose term is multiplied by
    temperature**2 if t_squared; the correct class is never softened. The defaults are those of the authors' code. Needs
    at least two classes. The cross-entropy with the labels is not included: add Truth(...).

    Formula: -1/N · Σ (p[y] log q[y] + gamma T² Σ r_t log r_s), with p = softmax(t), q = softmax(s) and r = softmax(z /
        T) over the classes other than y
    Shapes: logits (N, C); labels (N,)
    Source: Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation", arXiv:2303.13005
    """

    gamma: float = 1.5
    temperature: float = 1.0
    t_squared: bool = True

    per_position = True
    mean_over_rows = True
    requires = frozenset({"hard_labels"})

    def __post_init__(self) -> None:
        validate_weights(gamma=self.gamma)
        validate_temperature(self.temperature)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the sum of both terms, which is above 0 because it includes the teacher's entropy."""
        require_same_outputs(student, target, self)
        labels = require_class_labels(labels, student, self)
        require_two_classes(student, self)
        student, target = upcast_half(student), upcast_half(target)
        # log probabilities of the correct class, (batch, 1)
        student_log, target_log = (F.log_softmax(side, 1).gather(1, labels[:, None]) for side in (student, target))
        columns = other_columns(labels, student.shape[1])
        student_rest, student_is_alone = select_others(student / self.temperature, columns)
        target_rest, target_is_alone = select_others(target / self.temperature, columns)
        # the other classes are normalised to sum to 1, so that both distributions can become equal
        probability = target_rest.softmax(1) * ~(student_is_alone | target_is_alone)
        rest = cross_terms(probability, F.log_softmax(student_rest, 1)).sum(1).mean()
        weight = self.gamma * (self.temperature**2 if self.t_squared else 1)
        return -cross_terms(target_log.exp(), student_log).mean() - weight * rest


@dataclass(frozen=True, slots=True)
class MarginMSE:
    """Squared error between the margins of the correct class over all others, as in retrieval (Margin-MSE).

    In squared units of a logit, mean over the batch and the other classes. The outputs are usually scores of passages
    for a query, and the label is the index of the relevant one; the paper has one other passage. Adding an offset to
    all scores of a query changes nothing, so the scores of a bi-encoder may have a different range from the teacher's.
    Classes that both sides mask by a logit of -inf are left out, such as the padding of lists of different lengths; a
    sample has the mean over its other classes. Needs at least two classes.

    Formula: 1/(N (C - 1)) · Σ_j ((s[y] - s[j]) - (t[y] - t[j]))², with j the classes other than y
    Shapes: logits (N, C); labels (N,)
    Source: Hofstätter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
        Distillation", arXiv:2010.02666
    """

    per_position = True
    requires = frozenset({"hard_labels"})

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the error, minimal (0) if the logits are equal up to an offset of each sample."""
        require_same_outputs(student, target, self)
        labels = require_class_labels(labels, student, self)
        require_two_classes(student, self)
        columns = other_columns(labels, student.shape[1])
        student, target = (
            side.gather(1, labels[:, None]) - side.gather(1, columns)
            for side in (upcast_half(student), upcast_half(target))
        )
        absent = (student == math.inf) & (target == math.inf)  # a margin over -inf
        errors = (student - target).masked_fill(absent, 0).square().sum(1)
        return (errors / (~absent).sum(1).clamp(min=1)).mean()


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelDKD:
    """Divergence per label, averaged separately over present and absent labels (after DKD).

    Multi-label classes do not compete with each other, but the few present labels are outnumbered by the absent ones.
    In nats, times temperature**2 if t_squared. alpha weighs the mean over the present labels, beta that over the absent
    ones. Labels may be mixed, in [0, 1]. Means are over the whole batch; the first is 0 if no label is present.

    Formula: T² · (alpha Σ y d / Σ y + beta Σ (1 - y) d / Σ (1 - y)), with d = KL(Bernoulli(sigmoid(t / T)) ‖
        Bernoulli(sigmoid(s / T)))
    Shapes: logits (N, C); labels (N, C) in [0, 1]
    Source: ours, after Zhao et al. 2022, arXiv:2203.08679
    """

    alpha: float = 1.0
    beta: float = 1.0
    temperature: float = 1.0
    t_squared: bool = True

    per_position = True

    def __post_init__(self) -> None:
        validate_weights(alpha=self.alpha, beta=self.beta)
        validate_temperature(self.temperature)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the weighted sum, minimal (0) if both sides give the same probabilities."""
        require_same_outputs(student, target, self)
        student, target = upcast_half(student), upcast_half(target)
        present = require_label_matrix(labels, student, self)
        loss = bernoulli_kl(student / self.temperature, target / self.temperature, reduction="none")
        loss = self.alpha * _weighted_mean(loss, present) + self.beta * _weighted_mean(loss, 1 - present)
        return loss * self.temperature**2 if self.t_squared else loss


def other_columns(labels: Tensor, classes: int) -> Tensor:
    """Return the indices of the classes other than the label, (batch, classes - 1)."""
    columns = torch.arange(classes - 1, device=labels.device).expand(len(labels), -1)
    # the columns from the label on move up by one, which skips the label
    return columns + (columns >= labels[:, None]).long()


def select_others(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of other classes, (batch, classes - 1), and whether all of them are -inf, (batch, 1).

    If so, the first of them is 0 instead, because a softmax of only -inf is NaN.
    """
    rest = logits.gather(1, columns)
    # The gradient does not record these assignments: it is finite, and only reaches masked logits.
    values = rest.detach()
    is_alone = values.amax(1, keepdim=True) == -math.inf
    values[:, :1].masked_fill_(is_alone, 0)
    return rest, is_alone


def decouple(logits: Tensor, labels: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of (correct, incorrect), (batch, 2), and the results of `select_others`.

    columns: the result of `other_columns`.
    """
    rest, is_alone = select_others(logits, columns)
    # the logit of "incorrect" is a logsumexp, so that log(1 - p) is never computed
    binary = torch.cat([logits.gather(1, labels[:, None]), rest.logsumexp(1, keepdim=True)], 1)
    binary.detach()[:, 1:].masked_fill_(is_alone, -math.inf)
    return binary, rest, is_alone


def divergence(student: Tensor, target: Tensor, *, left_out: Tensor | None = None) -> Tensor:
    """Return KL(target ‖ student) of logits (batch, options), mean over the batch.

    left_out: which samples add 0, (batch, 1), by default none.
    """
    target_log = F.log_softmax(target, 1)
    if left_out is not None:
        # log 0 = -inf makes all probabilities of a sample 0, and log 1 = 0 changes nothing
        target_log = target_log + (~left_out).to(target_log.dtype).log()
    return kl_sum(target_log, F.log_softmax(student, 1)) / len(student)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean, or 0 if all weights are 0."""
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, 1)
