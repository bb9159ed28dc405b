"""A loss on outputs for teachers of another architecture, which raises the correct class (OFA)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.features import upcast_half
from kdkit.losses.logits import cross_terms
from kdkit.losses.validation import (
    require_class_labels,
    require_same_outputs,
    validate_above_zero,
    validate_switches,
    validate_temperature,
)


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
