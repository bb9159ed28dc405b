"""The shelf of losses: `(student, target) -> scalar`."""

from kdkit.losses.features import Cosine, Hint
from kdkit.losses.logits import SoftTargets
from kdkit.losses.loss import Built, Facts, Loss, asked_by, loss_name, needs_of
from kdkit.losses.multilabel import PerLabelSoftTargets

__all__ = [
    "Built",
    "Cosine",
    "Facts",
    "Hint",
    "Loss",
    "PerLabelSoftTargets",
    "SoftTargets",
    "asked_by",
    "loss_name",
    "needs_of",
]
