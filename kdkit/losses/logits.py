"""Losses between the outputs of a student and of a teacher for one class out of many."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError

Reduction = Literal["batchmean", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftTargets:
    """Kullback-Leibler divergence of the softened teacher to the softened student (Hinton et al. 2015, sec. 2).

    Both (batch, classes) logits -> scalar, in nats. reduction "batchmean" sums over classes and averages over the
    batch; "mean" averages over both, which is 1/classes of it. t_squared multiplies by temperature**2, so that the
    gradient keeps its size when the temperature changes; the authors of LRH-Net leave it out.
    """

    temperature: float = 4.0
    t_squared: bool = True
    reduction: Reduction = "batchmean"

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_reduction(self.reduction)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, least (0) where both give the same probabilities."""
        student = F.log_softmax(full(student) / self.temperature, dim=1)
        target = F.log_softmax(full(target) / self.temperature, dim=1)
        loss = F.kl_div(student, target, reduction="sum", log_target=True)  # torch's "mean" is to change its meaning
        loss = loss / (student.numel() if self.reduction == "mean" else len(student))
        return loss * self.temperature**2 if self.t_squared else loss


def full(logits: Tensor) -> Tensor:
    """Return logits in at least float32: a divergence of half-precision logits has hardly a digit left."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def validate_reduction(reduction: str) -> None:
    """Raise RecipeError for a reduction that is neither "batchmean" nor "mean"."""
    if reduction not in get_args(Reduction):
        raise RecipeError(f"reduction is 'batchmean' or 'mean'; got {reduction!r}")


def validate_temperature(temperature: float) -> None:
    """Raise RecipeError unless the temperature is a finite number above 0."""
    if not 0 < temperature < float("inf"):
        raise RecipeError(f"a temperature is a finite number above 0; got {temperature!r}")
