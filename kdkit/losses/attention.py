"""Losses between where a student and a teacher attend to: AT and CWD."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.features import Projected, direction, full, with_positions
from kdkit.losses.logits import kl
from kdkit.losses.projectors import meet
from kdkit.losses.projectors.factory import Kind, When
from kdkit.losses.validation import (
    Reduction,
    validate_above_zero,
    validate_reduction,
    validate_switches,
    validate_temperature,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTransfer:
    """Squared distance between normalised attention maps: the mean over channels of |feature|**p (AT).

    Without unit. Channels may differ; where positions do, the larger are averaged to the smaller. reduction "mean"
    averages over batch and positions, as public code does; "batchmean" sums over positions and averages over the batch,
    the square of the paper's norm. p = 2 there.

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
        """Return the distance, least (0) where both attend alike."""
        student, target = meet(with_positions(full(student), self), with_positions(full(target), self))
        ours, theirs = self.map(student), self.map(target)
        loss = F.mse_loss(ours, theirs, reduction="sum")
        return loss / (ours.numel() if self.reduction == "mean" else len(ours))

    def map(self, features: Tensor) -> Tensor:
        """Return the attention map, (batch, positions), of length 1."""
        return direction(features.abs().pow(self.p).mean(1).flatten(1))


class CWD(Projected):
    """Kullback-Leibler divergence between where every channel of the teacher and of the student is active.

    In nats, summed over positions, mean over batch and channels: a softmax over positions, softened by a temperature,
    makes each channel a distribution. t_squared multiplies by temperature**2. The temperature of the authors' code is 1
    by default. projector and kind are those of Hint.

    Formula: T²/(N C) · Σ p log(p / q), with p = softmax(t / T) and q = softmax(g(s) / T) over positions
    Shapes: features (N, C, L), (N, C, H, W)
    Source: Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction", arXiv:2011.13256
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        t_squared: bool = True,
        projector: When = "auto",
        kind: Kind = "linear",
    ) -> None:
        super().__init__(projector=projector, kind=kind)
        validate_temperature(temperature)
        validate_switches(t_squared=t_squared)
        self.temperature = temperature
        self.t_squared = t_squared

    def between(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, least (0) where every channel is spread alike."""
        ours, theirs = (
            F.log_softmax(with_positions(full(each), self).flatten(2) / self.temperature, dim=2)
            for each in (student, target)
        )
        loss = kl(theirs, ours) / (ours.shape[0] * ours.shape[1])
        return loss * self.temperature**2 if self.t_squared else loss
