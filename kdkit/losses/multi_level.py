"""Soft targets at several temperatures, with the relations between samples and between classes (MLLD)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.logits import bernoulli_kl, kl_sum
from kdkit.losses.numerics import upcast_half, without_autocast
from kdkit.losses.validation import require_same_outputs, validate_switches, validate_temperature, validate_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class _LevelOptions:
    """The options of MLLD and of its multi-label form."""

    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)
    instance_weight: float = 1.0
    batch_weight: float = 1.0
    class_weight: float = 1.0
    t_squared: bool = True

    per_position = True

    def __post_init__(self) -> None:
        # str is a sequence as well, but not of numbers
        if isinstance(self.temperatures, str) or not isinstance(self.temperatures, Sequence) or not self.temperatures:
            raise RecipeError(f"temperatures are one number above 0 or more, such as (2, 4); got {self.temperatures!r}")
        for temperature in self.temperatures:
            validate_temperature(temperature)
        # a list would neither be hashable nor equal to a tuple
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        validate_weights(
            instance_weight=self.instance_weight, batch_weight=self.batch_weight, class_weight=self.class_weight
        )
        validate_switches(t_squared=self.t_squared)

    def _sum(self, levels: Iterable[tuple[float, Tensor, Tensor, Tensor]]) -> Tensor:
        """Return the weighted sum over temperatures of (temperature, instance, batch, class) terms."""
        values = [
            self.instance_weight * (temperature**2 if self.t_squared else 1) * instance
            + self.batch_weight * batch
            + self.class_weight * classes
            for temperature, instance, batch, classes in levels
        ]
        return torch.stack(values).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class MLLD(_LevelOptions):
    """Soft targets, inner products between samples, and those between classes, at several temperatures (multi-level).

    The sum over temperatures of a divergence in nats and of two squared differences of Gram matrices. As in the paper,
    the batch term is divided by the batch size and the class term by the number of classes, so both grow with the batch
    size, the latter with its square. Samples are those of the (micro-)batch. t_squared applies to the divergence only.
    The loss is also known as MLKD. Both terms are computed from the smaller of the matrices (N, N) and (C, C).

    The authors' code sums over two views of each sample, weakly and strongly augmented: use one term per view. It
    multiplies the terms of the weak view by the share of samples (or classes) on which the teacher is less sure than
    the median, about one half, because they are reduced before the mask applies. It computes the class relations of the
    strong view but does not add them, and at two of the five temperatures it uses the weak view in place of the strong
    one.

    Formula: Σ_T (T²/N Σ p log(p / q) + 1/N ‖P Pᵀ - Q Qᵀ‖² + 1/C ‖Pᵀ P - Qᵀ Q‖²), with p = softmax(t / T), q = softmax(s
        / T), and P, Q their matrices (N, C)
    Shapes: logits (N, C)
    Source: Jin et al. 2023, "Multi-Level Logit Distillation", CVPR 2023
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum, minimal (0) if both sides give the same probabilities."""
        require_same_outputs(student, target, self)
        student, target = upcast_half(student), upcast_half(target)
        levels = []
        with without_autocast(student):
            for temperature in self.temperatures:
                student_log, target_log = (F.log_softmax(side / temperature, 1) for side in (student, target))
                samples, classes = gram_distances(student_log.exp(), target_log.exp())
                count, width = student.shape
                levels.append((temperature, kl_sum(target_log, student_log) / count, samples / count, classes / width))
            return self._sum(levels)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelMLLD(_LevelOptions):
    """Divergence per label, inner products between samples, and those between labels, the multi-label form of MLLD.

    Like MLLD with a sigmoid per label, but all terms are means, because the probabilities of labels do not sum to 1:
    the divergence over batch and labels, the inner products over the numbers that they sum and over the pairs of
    samples or labels. The default weights then do not depend on the batch size or the number of labels.

    Formula: Σ_T (T²/(N C) Σ KL(Bernoulli(p) ‖ Bernoulli(q)) + 1/(N C)² (‖P Pᵀ - Q Qᵀ‖² + ‖Pᵀ P - Qᵀ Q‖²)), with p =
        sigmoid(t / T), q = sigmoid(s / T), and P, Q their matrices (N, C)
    Shapes: logits (N, C)
    Source: ours, after Jin et al. 2023, "Multi-Level Logit Distillation", CVPR 2023
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum, minimal (0) if both sides give the same probabilities."""
        require_same_outputs(student, target, self)
        student, target = upcast_half(student), upcast_half(target)
        entries = student.numel()
        levels = []
        with without_autocast(student):
            for temperature in self.temperatures:
                ours, theirs = student / temperature, target / temperature
                divergence = bernoulli_kl(ours, theirs, reduction="mean")
                samples, labels = gram_distances(ours.sigmoid(), theirs.sigmoid())
                # a mean over N² pairs of the squared mean over C products, and the other way round
                levels.append((temperature, divergence, samples / entries**2, labels / entries**2))
            return self._sum(levels)


def gram_distances(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return ‖F Fᵀ - S Sᵀ‖² and ‖Fᵀ F - Sᵀ S‖² of two matrices (rows, columns).

    Both are computed from matrices of the smaller size, (rows, rows) or (columns, columns).
    """
    if first.shape[0] > first.shape[1]:
        return tuple(reversed(gram_distances(first.T, second.T)))  # type: ignore[return-value]  # a tuple of two
    difference, total = first - second, first + second
    # F Fᵀ - S Sᵀ = (D Tᵀ + T Dᵀ) / 2 with D = F - S and T = F + S, (rows, rows). Products with D as a factor are exact
    # for similar sides; the difference of two Gram matrices is not.
    cross = difference @ total.T
    rows = (cross + cross.T).square().sum() / 4
    # tr (Dᵀ T + Tᵀ D)² / 4 = (tr D Dᵀ T Tᵀ + tr (D Tᵀ)²) / 2, without a matrix (columns, columns)
    columns = ((difference @ difference.T) * (total @ total.T)).sum() + (cross * cross.T).sum()
    return rows, columns / 2
