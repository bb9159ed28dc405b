"""Losses to labels that a net's own past softens, more and more as it learns."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.features import full
from kdkit.losses.validation import (
    one_answer_per_label,
    one_class_each,
    same_outputs,
    validate_choice,
    validate_count,
    validate_share,
)

Past = Literal["logits", "probabilities"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PSKD:
    """Cross-entropy to the labels mixed with what the net said in its last epoch (progressive self-distillation).

    In nats, summed over classes, mean over the batch. alpha is the past's share at the end; it grows linearly with
    progress, or, given the number of epochs, in their steps: alpha * (epoch + 1) / epochs, epochs from 0. past: what
    the target holds, logits or probabilities. It stands for the labels and the past: there is no Truth(...) beside it.

    Formula: -1/N · Σ ((1 - a) y + a p) log q, with p = softmax(t), q = softmax(s), y one-hot and a = alpha · progress
    Shapes: logits (N, C); labels (N,), progress in [0, 1]
    Source: Kim et al. 2021, "Self-Knowledge Distillation with Progressive Refinement of Targets", arXiv:2006.12000
    """

    alpha: float = 0.8
    epochs: int | None = None
    past: Past = "logits"

    needs = frozenset({"hard_labels"})

    def __post_init__(self) -> None:
        _validate(self)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor, progress: Tensor) -> Tensor:
        """Return the cross-entropy; more than 0, for the mix has an entropy of its own."""
        same_outputs(student, target, self)
        student, target = full(student), full(target)
        past = target.softmax(1) if self.past == "logits" else target
        truth = F.one_hot(one_class_each(labels, student, self), student.shape[1])
        mix = truth + _share(self, progress) * (past - truth)
        return -(mix * F.log_softmax(student, 1)).sum(1).mean()


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelPSKD:
    """Binary cross-entropy to the labels mixed with what the net said in its last epoch: the multi-label form of PSKD.

    In nats, mean over batch and classes; options as in PSKD, with a sigmoid in place of the softmax.

    Formula: -1/(N C) · Σ (m log q + (1 - m) log(1 - q)), with m = (1 - a) y + a sigmoid(t), q = sigmoid(s) and a =
        alpha · progress
    Shapes: logits (N, C); labels (N, C) in [0, 1], progress in [0, 1]
    Source: ours, after Kim et al. 2021, arXiv:2006.12000
    """

    alpha: float = 0.8
    epochs: int | None = None
    past: Past = "logits"

    def __post_init__(self) -> None:
        _validate(self)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor, progress: Tensor) -> Tensor:
        """Return the cross-entropy; more than 0, for the mix has an entropy of its own."""
        same_outputs(student, target, self)
        student, target = full(student), full(target)
        past = target.sigmoid() if self.past == "logits" else target
        truth = one_answer_per_label(labels, student, self)
        mix = truth + _share(self, progress) * (past - truth)
        return F.binary_cross_entropy_with_logits(student, mix)


def _validate(loss: PSKD | PerLabelPSKD) -> None:
    validate_share("alpha", loss.alpha)
    validate_choice("past", loss.past, Past)
    validate_count("epochs", loss.epochs, optional=True)


def _share(loss: PSKD | PerLabelPSKD, progress: Tensor) -> Tensor:
    """Return the past's share at this progress, a scalar."""
    if loss.epochs is not None:
        # A whole number of epochs, kept as a float32 share of the stage, may come back a little less
        progress = ((progress * loss.epochs + 1e-4).floor() + 1).clamp(max=loss.epochs) / loss.epochs
    return loss.alpha * progress
