"""Losses before the activation: only what would pass a margin ReLU is pulled to the teacher (OFD)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.features import Shapes, full, one
from kdkit.losses.projectors.factory import When, validate_when
from kdkit.losses.projectors.layers import BatchNorm, Pointwise
from kdkit.losses.projectors.linear import fitted, positions_of
from kdkit.losses.validation import is_number, validate_above_zero

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

_RARE = 0.001  # below this share of negative values the authors take three deviations for the margin


class OFD(nn.Module):
    """Partial squared error between features before their ReLU, to a teacher with a margin (OFD).

    `factor`, which is that of public code, times the sum over channels and positions, mean over the batch. Both sides
    are the outputs of batch norms; a map over channels with a batch norm brings the student to the teacher's, after a
    resize where positions differ. The teacher's values are cut at the margin, the mean of its channel's negative
    values, which follows from the weight and bias of its batch norm; where that is negative and the student is below
    it, there is no loss. norm: the teacher's batch norm, by default the one that is tapped, or else the only one of so
    many channels. margin: the same for every channel of a teacher without. projector "never" compares features as they
    are. Over several layers, the authors' code gives each half the weight of the next deeper one.

    Formula: factor/N · Σ w (g(s) - u)², with g the map, u = max(t, margin) and w = 1 where g(s) > u or t > 0, else 0
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Heo et al. 2019, "A Comprehensive Overhaul of Feature Distillation", arXiv:1904.01866
    """

    margins: Tensor

    def __init__(
        self,
        norm: nn.Module | None = None,
        *,
        margin: float | None = None,
        factor: float = 1e-3,
        projector: When = "always",
    ) -> None:
        super().__init__()
        validate_above_zero("factor", factor)
        validate_when(projector)
        if norm is not None and not isinstance(norm, Norm):
            raise RecipeError(f"norm is the teacher's batch norm before the ReLU; got a {type(norm).__name__}")
        if margin is not None and (not is_number(margin) or margin > 0):
            raise RecipeError(f"a margin is a finite number of at most 0; got {margin!r}")
        self._norm = (norm,)  # in a tuple, so that the teacher's weights are not taken for the loss's
        self.margin, self.factor, self.when = margin, factor, projector
        self.connector: nn.Module = nn.Identity()
        self.positions: tuple[int, ...] | None = None
        self.register_buffer("margins", torch.zeros(0), persistent=False)  # they follow from the teacher

    def build(self, student: Shapes, target: Shapes, facts: BuildContext, teacher: nn.Module | None) -> None:
        """Make the connector and read the margins. Raises RecipeError where there are none, or shapes cannot meet."""
        given, wanted = one(student, self), one(target, self)
        differ = given[1:] != wanted[1:]
        if differ and self.when == "never":
            raise RecipeError(
                f"features of {tuple(given[1:])} cannot meet {tuple(wanted[1:])} without a connector; "
                "OFD(projector='always') makes one"
            )
        made = differ or self.when == "always"
        self.positions = positions_of(given, wanted) if made else None
        connector = [Pointwise(given[1], wanted[1], bias=False), BatchNorm(wanted[1])] if made else []
        self.connector = nn.Sequential(*connector)
        self.margins = self._margins(wanted[1], facts, teacher)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, least (0) where the student has the teacher's values, or less where these are negative."""
        if self.positions is not None:
            student = fitted(student, self.positions)
        student, target = full(self.connector(student)), full(target)
        target = torch.maximum(target, self.margins.to(target).reshape(-1, *(1 for _ in target.shape[2:])))
        counts = (student > target) | (target > 0)
        return self.factor * ((student - target).square() * counts).sum() / len(student)

    def _margins(self, channels: int, facts: BuildContext, teacher: nn.Module | None) -> Tensor:
        if self.margin is not None:
            return torch.full((channels,), self.margin)
        norm: Any = self._norm[0] or _tapped_norm(facts) or _only_norm(teacher, channels)
        if norm.weight is None or len(norm.weight) != channels:
            raise RecipeError(f"OFD's norm has no weights for the {channels} channels of the teacher's features")
        return margins_of(norm.weight.detach(), norm.bias.detach())


def margins_of(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the mean of the negative values of Normal(bias, |weight|), (channels,), as OFD's margins.

    Where hardly any value is negative, -3 |weight|, which is what the authors take.
    """
    deviation, mean = weight.double().abs(), bias.double()
    ratio = mean / deviation.clamp_min(torch.finfo(torch.float64).tiny)
    share = torch.special.ndtr(-ratio)
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    negative = mean - deviation * density / share.clamp_min(_RARE)
    return torch.where(share > _RARE, negative, -3 * deviation).to(weight.dtype)


def _tapped_norm(facts: BuildContext) -> nn.Module | None:
    """Return the batch norm that the teacher is tapped on, where it is one."""
    (*_, tapped) = facts.tapped or (None,)
    return tapped if isinstance(tapped, Norm) else None


def _only_norm(teacher: nn.Module | None, channels: int) -> nn.Module:
    found = [
        (name, module)
        for name, module in (teacher.named_modules() if teacher is not None else ())
        if isinstance(module, Norm) and module.num_features == channels
    ]
    if len(found) == 1:
        return found[0][1]
    has = ", ".join(name for name, _ in found[:8]) or "none"
    raise RecipeError(
        f"OFD takes its margins from the teacher's batch norm before the tapped ReLU, but of {channels} channels the "
        f"teacher has {len(found)} ({has}); say which with OFD(teacher.module.layer3.bn), or OFD(margin=-1.0) without"
    )
