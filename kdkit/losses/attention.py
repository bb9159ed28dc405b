"""Losses that transfer spatial attention: which positions of a feature map are active (AT and CWD)."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from kdkit.losses.features import ProjectedLoss, require_positions
from kdkit.losses.logits import kl_sum, reduce_sum
from kdkit.losses.numerics import MIN_NORM, least_norm, unit_vectors, upcast_half
from kdkit.losses.projectors.factory import ProjectorKind, ProjectorMode
from kdkit.losses.projectors.resizing import match_positions
from kdkit.losses.validation import (
    Reduction,
    require_sides,
    validate_above_zero,
    validate_reduction,
    validate_switches,
    validate_temperature,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTransfer:
    """Squared distance between normalised attention maps, the mean over channels of |feature|**p (AT).

    Dimensionless. Channels may differ. If positions differ, the larger map is average-pooled to the smaller. reduction
    "mean" averages over batch and positions, as public code does; "batchmean" sums over positions and averages over the
    batch, which is the square of the paper's norm. The paper uses p = 2. With p below 1, a feature of 0 gets no
    gradient.

    Formula: mean (A(s) - A(t))², with A(x) = a / ‖a‖ for a = mean over channels of abs(x)^p
    Shapes: features (N, C, L), (N, C, H, W)
    Source: Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", arXiv:1612.03928
    """

    p: float = 2
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        validate_above_zero("p", self.p)
        validate_reduction(self.reduction)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance, 0 if both attention maps are equal."""
        require_sides(student, target, self)
        least = least_norm(student)
        student, target = match_positions(
            require_positions(upcast_half(student), self), require_positions(upcast_half(target), self)
        )
        student_map, target_map = (self.attention_map(side, least=least) for side in (student, target))
        return reduce_sum(F.mse_loss(student_map, target_map, reduction="sum"), student_map, self.reduction)

    def attention_map(self, features: Tensor, *, least: float = MIN_NORM) -> Tensor:
        """Return the attention map, (batch, positions), normalised to length 1.

        least: the absolute value up to which features count as 0 if p is below 1.
        """
        magnitudes = features.abs()
        if self.p < 1:
            # The gradient of x**p is infinite at 0. The inner mask keeps the product of both from being NaN.
            is_zero = magnitudes <= least
            powers = magnitudes.masked_fill(is_zero, 1).pow(self.p).masked_fill(is_zero, 0)
        else:
            powers = magnitudes.pow(self.p)
        # the activation-based map of sec. 3.1, which sums over channels; the normalisation cancels the factor
        return unit_vectors(powers.mean(1).flatten(1))


class CWD(ProjectedLoss):
    """Kullback-Leibler divergence between the spatial distributions of every channel (channel-wise distillation).

    In nats, summed over positions, mean over batch and channels. A softmax over positions, softened by a temperature,
    turns each channel into a distribution. t_squared multiplies by temperature**2. The default temperature is that of
    the authors' script; mmrazor uses 1. projector and kind are as in Hint.

    Formula: T²/(N C) · Σ p log(p / q), with p = softmax(t / T) and q = softmax(g(s) / T) over positions
    Shapes: features (N, C, L), (N, C, H, W)
    Source: Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction", arXiv:2011.13256
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        t_squared: bool = True,
        projector: ProjectorMode = "auto",
        kind: ProjectorKind = "linear",
    ) -> None:
        super().__init__(projector=projector, kind=kind)
        validate_temperature(temperature)
        validate_switches(t_squared=t_squared)
        self.temperature = temperature
        self.t_squared = t_squared

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, 0 if every channel has the same spatial distribution."""
        # a softmax over the flattened positions of each channel: (batch, channels, positions)
        student_log, target_log = (
            F.log_softmax(require_positions(upcast_half(side), self).flatten(2) / self.temperature, dim=2)
            for side in (student, target)
        )
        loss = kl_sum(target_log, student_log) / (student_log.shape[0] * student_log.shape[1])
        return loss * self.temperature**2 if self.t_squared else loss
