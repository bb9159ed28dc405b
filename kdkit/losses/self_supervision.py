"""A loss on the similarities between transformed copies of samples, a task without labels (SSKD)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.errors import RecipeError
from kdkit.losses.logits import kl_terms
from kdkit.losses.numerics import least_norm, unit_vectors, upcast_half, without_autocast
from kdkit.losses.validation import require_sides, validate_share, validate_switches, validate_temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class SSKD:
    """Divergence between the similarities of transformed copies to all samples of the batch (SSKD).

    Features are (batch, channels, copies): copy 0 is the sample itself, and the others are transformed, such as
    rotated. The cosines of a transformed copy with all samples, divided by the temperature, become probabilities of
    which sample it was made from. In nats, mean over the transformed copies that are kept: those whose sample the
    teacher finds, and the share `wrong` of the others, whose sample has the best rank among its similarities. t_squared
    multiplies by temperature**2. The batch is the (micro-)batch of the same rank. Channels may differ.

    The features are those of a small head of each network; that of the teacher is trained in a stage of its own.
    docs/coming-from.md has the whole method, whose other terms compare outputs.

    Formula: T²/K · Σ p log(p / q) over the K copies that are kept, with p = softmax(cos(t, t_n) / T) over the samples
        n of the batch, and q that of the student
    Shapes: features (N, C, L), of a sample and its L - 1 transformed copies; as many on both sides
    Source: Xu et al. 2020, "Knowledge Distillation Meets Self-Supervision", arXiv:2006.07114, and its authors' code
    """

    temperature: float = 0.5
    wrong: float = 0.75
    t_squared: bool = True

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_share("wrong", self.wrong)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if the similarities are equal."""
        require_sides(student, target, self)
        for side in (student, target):
            if side.ndim != 3 or side.shape[2] < 2 or side.shape[2] != student.shape[2]:
                raise RecipeError(
                    "SSKD compares features (batch, channels, copies) of two copies or more, as many on both sides; "
                    f"got {tuple(student.shape)} and {tuple(target.shape)}: tap a layer before it is pooled over the "
                    "copies"
                )
        cosines = self.cosines(target)
        student_log, target_log = (
            (side / self.temperature).log_softmax(2) for side in (self.cosines(student), cosines)
        )
        kept = self.kept(cosines)
        loss = (kl_terms(target_log, student_log).sum(2) * kept).sum() / kept.sum().clamp(min=1)
        return loss * self.temperature**2 if self.t_squared else loss

    def cosines(self, features: Tensor) -> Tensor:
        """Return the cosines of transformed copies with all samples, (batch, transformed copies, samples)."""
        with without_autocast(features):
            vectors = unit_vectors(upcast_half(features), least=least_norm(features)).mT  # (batch, copies, channels)
            return vectors[:, 1:] @ vectors[:, 0].T

    def kept(self, cosines: Tensor) -> Tensor:
        """Return which transformed copies are compared, by the cosines of the teacher, (batch, transformed copies)."""
        own = cosines.diagonal(dim1=0, dim2=2).T[..., None]
        ranks = (cosines > own).sum(2)  # 0 if the sample of a copy is the most similar one
        is_wrong = ranks.flatten() > 0
        most = (~is_wrong).sum() + (is_wrong.sum() * self.wrong).floor()
        order = ranks.flatten().argsort(stable=True)
        positions = torch.zeros_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
        return (positions < most).reshape(ranks.shape)
