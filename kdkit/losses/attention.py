"""Losses between where a student and a teacher attend to: AT and CWD."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.conditions import Reduction, validate_above_zero, validate_reduction, validate_temperature
from kdkit.losses.projected import Projected, direction, full, with_positions
from kdkit.projectors import meet
from kdkit.projectors.kinds import Kind, When


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTransfer:
    """Squared distance between normalised attention maps: the mean over channels of |feature|**p (AT).

    Both (batch, channels, positions...); channels may differ, and where positions do, the larger
    are averaged to the smaller -> scalar without a unit. reduction "mean" averages over batch and positions, as public
    code does; "batchmean" sums over positions and averages over the batch, as the paper's norm does.
    Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", eq. 2; p = 2 there.
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

    Both (batch, channels, positions...) -> scalar, in nats, summed over positions, mean over batch and channels: a
    softmax over positions, softened by a temperature, makes each channel a distribution. t_squared multiplies by
    temperature**2. Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction", sec. 3.2.
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
        self.temperature = temperature
        self.t_squared = t_squared

    def between(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, least (0) where every channel is spread alike."""
        ours, theirs = (
            F.log_softmax(with_positions(full(each), self).flatten(2) / self.temperature, dim=2)
            for each in (student, target)
        )
        loss = F.kl_div(ours, theirs, reduction="sum", log_target=True) / (ours.shape[0] * ours.shape[1])
        return loss * self.temperature**2 if self.t_squared else loss
