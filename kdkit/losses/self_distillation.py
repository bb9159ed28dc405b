"""Cross-entropy with labels that are softened by the net's own earlier predictions (PS-KD)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.losses.logits import cross_terms
from kdkit.losses.numerics import upcast_half
from kdkit.losses.validation import (
    require_class_labels,
    require_label_matrix,
    require_same_outputs,
    validate_choice,
    validate_count,
    validate_share,
)

# The form of the past predictions, an option of both losses.
PastForm = Literal["logits", "probabilities"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _PastOptions:
    """The options of PSKD and of its multi-label form."""

    alpha: float = 0.8
    epochs: int | None = None
    past: PastForm = "logits"

    per_position = True

    def __post_init__(self) -> None:
        validate_share("alpha", self.alpha)
        validate_choice("past", self.past, PastForm)
        validate_count("epochs", self.epochs, optional=True)

    @property
    def fills_missing(self) -> bool:
        """Whether the labels count for samples without a past, too: the student's logits replace missing ones."""
        return self.past == "logits"

    def _past_weight(self, progress: Tensor | float) -> Tensor:
        """Return the weight of the past predictions at this progress, a scalar."""
        progress = torch.as_tensor(progress)
        if self.epochs is not None:
            # progress is float32, so epoch / epochs * epochs may come out just below the epoch; 1e-4 corrects that
            progress = ((progress * self.epochs + 1e-4).floor() + 1).clamp(max=self.epochs) / self.epochs
        # the paper's linear growth of alpha, alpha_t = alpha_T * t / T
        return self.alpha * progress


@dataclass(frozen=True, slots=True, kw_only=True)
class PSKD(_PastOptions):
    """Cross-entropy with the labels mixed with the net's predictions of its last epoch (progressive self-distillation).

    In nats, summed over classes, mean over the batch. alpha is the weight of the past predictions at the end; it grows
    linearly with progress, or in steps of an epoch, alpha * (epoch + 1) / epochs with epochs counted from 0, if the
    number of epochs is set. past: whether the target holds logits or probabilities; samples without past probabilities
    are left out. The labels are included, so add no Truth(...). In the first epoch, which has no past, the labels are
    mixed with the current predictions, which only scales the gradient by 1 - a; the authors' code uses the labels
    alone.

    Formula: -1/N · Σ ((1 - a) y + a p) log q, with p = softmax(t), q = softmax(s), y one-hot and a = alpha · progress
    Shapes: logits (N, C); labels (N,), progress in [0, 1]
    Source: Kim et al. 2021, "Self-Knowledge Distillation with Progressive Refinement of Targets", arXiv:2006.12000
    """

    requires = frozenset({"hard_labels"})

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor, progress: Tensor | float) -> Tensor:
        """Return the cross-entropy, which is above 0 because the mixed labels have an entropy."""
        require_same_outputs(student, target, self)
        student, target = upcast_half(student), upcast_half(target)
        past = target.softmax(1) if self.past == "logits" else target
        truth = F.one_hot(require_class_labels(labels, student, self), student.shape[1])
        # (1 - a) y + a p, the paper's softened targets
        mixed = truth + self._past_weight(progress) * (past - truth)
        return -cross_terms(mixed, F.log_softmax(student, 1)).sum(1).mean()


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelPSKD(_PastOptions):
    """Binary cross-entropy with the labels mixed with the predictions of the last epoch: the multi-label form of PSKD.

    In nats, mean over batch and classes; options as in PSKD, with a sigmoid in place of the softmax.

    Formula: -1/(N C) · Σ (m log q + (1 - m) log(1 - q)), with m = (1 - a) y + a sigmoid(t), q = sigmoid(s) and a =
        alpha · progress
    Shapes: logits (N, C); labels (N, C) in [0, 1], progress in [0, 1]
    Source: ours, after Kim et al. 2021, arXiv:2006.12000
    """

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor, progress: Tensor | float) -> Tensor:
        """Return the cross-entropy, which is above 0 because the mixed labels have an entropy."""
        require_same_outputs(student, target, self)
        student, target = upcast_half(student), upcast_half(target)
        past = target.sigmoid() if self.past == "logits" else target
        truth = require_label_matrix(labels, student, self)
        mixed = truth + self._past_weight(progress) * (past - truth)
        return F.binary_cross_entropy_with_logits(student, mixed)
