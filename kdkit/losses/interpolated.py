"""Soft targets that become harder during training: an interpolated teacher (TAID), a learned temperature (CTKD)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.logits import cross_terms, kl_sum
from kdkit.losses.numerics import upcast_half
from kdkit.losses.sides import Shapes
from kdkit.losses.validation import (
    require_same_outputs,
    validate_above_zero,
    validate_at_least_zero,
    validate_share,
    validate_switches,
)
from kdkit.utils.collectives import all_reduce_row_mean

_EPS = 1e-15  # as in the authors' code, in the denominator of the relative change


class TAID(nn.Module):
    """Soft targets from a mixture of both sides' logits, which moves towards the teacher's during training (TAID).

    In nats, summed over classes, mean over the batch. The share a of the teacher in the mixture grows from `start` to
    `end`, at least linearly with progress, and by up to rate * (1 - a) more in each training step: by rate * sigmoid(m)
    * (1 - a), with m the relative decrease of the loss from step to step, a moving average that keeps the share
    `momentum` of its old value. With rate=0, the growth is only linear. The first step only records the loss. The
    student's logits in the mixture get no gradient. The share is saved with the run; a step is a (micro-)batch. On
    several ranks, it follows the mean loss over the samples of all ranks. The defaults are those of the authors' code
    (its alpha is `rate`, its beta `momentum`).

    The authors' code returns the cross-entropy, which has the same gradient; here, too, m is computed from the
    cross-entropy.

    Formula: 1/N · Σ r log(r / q), with r = softmax((1 - a) s + a t) and q = softmax(s)
    Shapes: logits (N, C); progress in [0, 1]
    Source: Shing et al. 2025, "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in
        Language Models", arXiv:2501.16937
    """

    per_position = True
    accepts_no_rows = True

    share: Tensor
    trend: Tensor
    last_loss: Tensor

    def __init__(self, *, start: float = 0.4, end: float = 1.0, rate: float = 5e-4, momentum: float = 0.99) -> None:
        super().__init__()
        validate_share("start", start, below_one=True)
        validate_share("end", end)
        validate_share("rate", rate)
        validate_share("momentum", momentum, below_one=True)
        if start > end:
            raise RecipeError(f"the teacher's share grows from start to end; got start={start} and end={end}")
        self.start, self.end, self.rate, self.momentum = start, end, rate, momentum
        for name, value in self._initial_state().items():
            self.register_buffer(name, value)

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Return to the state before the first step."""
        for name, value in self._initial_state().items():
            setattr(self, name, value)

    def forward(self, student: Tensor, target: Tensor, *, progress: Tensor | float) -> Tensor:
        """Return the divergence, minimal (0) for the same probabilities; in training mode, update the share."""
        require_same_outputs(student, target, self)
        progress = torch.as_tensor(progress, device=student.device)
        student, target = upcast_half(student), upcast_half(target)
        student_log = F.log_softmax(student, 1)
        with torch.no_grad():
            share = self.share.to(student.dtype)
            mixture = (1 - share) * student + share * target
            # a class that the teacher masks is masked from the start: 0 * -inf is NaN
            mixture_log = F.log_softmax(mixture.masked_fill(target == -math.inf, -math.inf), 1)
            if self.training:
                self._update(-cross_terms(mixture_log.exp(), student_log).sum(1), progress)
        return kl_sum(mixture_log, student_log) / max(1, len(student))

    def extra_repr(self) -> str:
        """Return the options, for the printed plan of a recipe."""
        return f"start={self.start}, end={self.end}, rate={self.rate}, momentum={self.momentum}"

    def _update(self, losses: Tensor, progress: Tensor) -> None:
        """Follow the mean of the losses of the samples of all ranks. losses: (batch,)."""
        loss = all_reduce_row_mean(losses).float()
        # the relative decrease, which is not defined in the first step
        decrease = (self.last_loss - loss) / (self.last_loss + _EPS)
        trend = self.momentum * self.trend + (1 - self.momentum) * decrease
        faster = self.share + self.rate * trend.sigmoid() * (1 - self.share)
        linear = self.start + (self.end - self.start) * progress
        share = torch.maximum(faster, linear).clamp(max=self.end)
        # Choosing on the device does not wait for it. A loss that is not finite, such as that of no rows, changes
        # nothing.
        usable = trend.isfinite()
        self.trend.copy_(torch.where(usable, trend, self.trend))
        self.share.copy_(torch.where(usable, share, self.share))
        self.last_loss.copy_(torch.where(loss.isfinite(), loss, self.last_loss))

    def _initial_state(self) -> dict[str, Tensor]:
        return {
            "share": torch.full((), float(self.start)),
            "trend": torch.zeros(()),  # the moving average m
            "last_loss": torch.full((), math.inf),  # inf: no step yet
        }


class CTKD(nn.Module):
    """Soft targets whose temperature is trained to make them harder, along a curriculum (curriculum temperature).

    In nats, summed over classes, mean over the batch, times temperature**2 if t_squared. The temperature is least +
    width * sigmoid(v) for a trained number v, the global temperature of the paper. Its gradient is reversed: it raises
    the loss that the student lowers. The factor of its gradient grows from 0 to 1 along a cosine, over the fraction
    `ramp` of the stage. The defaults are those of the authors' script, 10 of 240 epochs. Weight decay of the optimizer
    applies to v as well. In the code of TAID's authors the factor falls from 1 to 0 and the gradient is not reversed.

    Formula: T²/N · Σ p log(p / q), with p = softmax(t / T), q = softmax(s / T) and T = least + width · sigmoid(v)
    Shapes: logits (N, C); progress in [0, 1]
    Source: Li et al. 2023, "Curriculum Temperature for Knowledge Distillation", arXiv:2211.16231
    """

    per_position = True

    def __init__(
        self, *, least: float = 1.0, width: float = 20.0, ramp: float = 10 / 240, t_squared: bool = True
    ) -> None:
        super().__init__()
        validate_above_zero("least", least)
        validate_at_least_zero("width", width)
        validate_share("ramp", ramp)
        validate_switches(t_squared=t_squared)
        self.least, self.width, self.ramp, self.t_squared = least, width, ramp, t_squared
        self.value = nn.Parameter(torch.ones(()))

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Create the trained number at its initial value."""
        self.value = nn.Parameter(torch.ones(()))

    def forward(self, student: Tensor, target: Tensor, *, progress: Tensor | float) -> Tensor:
        """Return the divergence, minimal (0) if both sides give the same probabilities."""
        require_same_outputs(student, target, self)
        progress = torch.as_tensor(progress, device=student.device)
        # 1 - cos rises from 0 to 2 over the ramp; a ramp of 0 is over from the start
        passed = (progress / self.ramp).clamp(max=1) if self.ramp else torch.ones_like(progress)
        factor = (1 - (math.pi * passed).cos()) / 2
        # the value of v, with -factor as its gradient
        reversed_value = self.value.detach() * (1 + factor) - self.value * factor
        temperature = self.least + self.width * reversed_value.sigmoid()
        student_log, target_log = (
            F.log_softmax(upcast_half(side) / temperature.to(upcast_half(side).dtype), 1) for side in (student, target)
        )
        loss = kl_sum(target_log, student_log) / len(student)
        return loss * temperature**2 if self.t_squared else loss

    def extra_repr(self) -> str:
        """Return the options, for the printed plan of a recipe."""
        return f"least={self.least}, width={self.width}, ramp={self.ramp:.3g}, t_squared={self.t_squared}"
