"""Other divergences between softened outputs than Hinton's: reverse, and between a student, a teacher and their mix."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.conditions import (
    Reduction,
    same_outputs,
    validate_reduction,
    validate_share,
    validate_switches,
    validate_temperature,
)
from kdkit.losses.kl import kl
from kdkit.losses.projected import full


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
    Tokens(GeneralisedJSD()) averages over the tokens that have a label.

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
