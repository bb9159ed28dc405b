"""Losses on features before the activation, with a margin: for negative values (OFD), or on both sides of 0 (AB)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.features import needs_projector, require_same_channels, single_tap_shape
from kdkit.losses.numerics import cast_for, upcast_half
from kdkit.losses.projectors.factory import ProjectorMode
from kdkit.losses.projectors.layers import BatchNorm, Pointwise
from kdkit.losses.projectors.linear import fit_positions, target_positions
from kdkit.losses.sides import Shapes
from kdkit.losses.validation import is_number, require_built, require_sides, validate_above_zero, validate_choice
from kdkit.utils.devices import widest_float

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

# If the probability of a negative value is below this, the authors use -3 standard deviations as the margin.
_MIN_NEGATIVE_PROBABILITY = 0.001


class OFD(nn.Module):
    """Partial squared error between features before their ReLU, with a margin ReLU on the teacher (OFD).

    `factor` times the sum over channels and positions, mean over the batch; the authors' code has 1e-3 for CIFAR-100,
    1e-4 for ImageNet and 1e-5 for segmentation. Both sides are outputs of batch norms. A map over channels with a batch
    norm projects the student to the teacher's channels, after a resize if positions differ. The teacher's values are
    clamped from below at the margin: the mean of the negative values of their channel, which follows from the weight
    and bias of its batch norm. If the clamped target is negative and the student is below it, the error is ignored.
    norm: the teacher's batch norm, by default the tapped one, otherwise the only one with as many channels. margin: a
    fixed margin for all channels, for a teacher without batch norm. projector "never" compares features as they are.
    Over several layers, the authors' code gives each layer half the weight of the next deeper one.

    Formula: factor/N · Σ w (g(s) - u)², with g the map, u = max(t, margin) and w = 1 if g(s) > u or t > 0, else 0
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
        projector: ProjectorMode = "always",
    ) -> None:
        super().__init__()
        validate_above_zero("factor", factor)
        validate_choice("projector", projector, ProjectorMode)
        if norm is not None and not isinstance(norm, Norm):
            raise RecipeError(f"norm is the teacher's batch norm before the ReLU; got a {type(norm).__name__}")
        if margin is not None and (not is_number(margin) or margin > 0):
            raise RecipeError(f"margin must be a finite number of at most 0; got {margin!r}")
        self._norm = (norm,)  # a tuple hides the teacher's weights from self.parameters()
        self.margin, self.factor, self.projector_mode = margin, factor, projector
        self.connector: nn.Module = nn.Identity()
        # (channels,), computed from the teacher at each build, so not saved with the loss
        self.register_buffer("margins", torch.zeros(0), persistent=False)

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Create the connector and compute the margins. Raises RecipeError without a norm, or if shapes do not fit."""
        student_shape, target_shape = single_tap_shape(student, self), single_tap_shape(target, self)
        self.connector = _make_connector(student_shape, target_shape, self.projector_mode, self)
        self.margins = self._compute_margins(target_shape[1], context, teacher)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, minimal (0) if the student has the teacher's values, or lower ones below 0."""
        require_sides(student, target, self)
        require_built(self.margins.numel(), self)
        student = fit_positions(student, tuple(target.shape[2:]))  # which may differ from batch to batch
        student, target = upcast_half(self.connector(cast_for(self.connector, student))), upcast_half(target)
        require_same_channels(student, target, self)
        # margin ReLU: (channels,) -> (channels, 1, ...), which broadcasts over batch and positions
        target = torch.maximum(target, self.margins.to(target).reshape(-1, *(1 for _ in target.shape[2:])))
        # partial L2 distance: a student below a target that is not positive is correct, since ReLU makes both 0
        counts = (student > target) | (target > 0)
        return self.factor * ((student - target).square() * counts).sum() / len(student)

    def _compute_margins(self, channels: int, context: BuildContext, teacher: nn.Module | None) -> Tensor:
        if self.margin is not None:
            return torch.full((channels,), self.margin)
        (*_, tapped) = context.tapped or (None,)
        norm: Any = self._norm[0] or (tapped if isinstance(tapped, Norm) else _only_norm(teacher, channels))
        if norm.weight is None or len(norm.weight) != channels:
            raise RecipeError(f"OFD's norm has no weights for the {channels} channels of the teacher's features")
        return channel_margins(norm.weight.detach(), norm.bias.detach())


class AB(nn.Module):
    """Squared error of the student's values that are not beyond a margin on the teacher's side of 0 (AB).

    `factor` times the sum over channels and positions, mean over the batch; the authors' code has 3e-3, for CIFAR-10.
    Both sides are features before their ReLU. Only the sign of the teacher's values counts: it tells whether a neuron
    is active. At a value of 0, it is not. A map over channels with a batch norm projects the student to the teacher's
    channels, after a resize if positions differ; projector "never" compares features as they are. Over several layers,
    the authors' code gives each layer half the weight of the next deeper one. It first trains the student with this
    loss alone, in a stage before the one with labels.

    Formula: factor/N · Σ max(0, margin - a g(s))², with g the map and a = 1 if t > 0, else -1
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Heo et al. 2019, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
        arXiv:1811.03233, and its authors' code
    """

    def __init__(self, *, margin: float = 1.0, factor: float = 3e-3, projector: ProjectorMode = "always") -> None:
        super().__init__()
        validate_above_zero("margin", margin)
        validate_above_zero("factor", factor)
        validate_choice("projector", projector, ProjectorMode)
        self.margin, self.factor, self.projector_mode = margin, factor, projector
        self.connector: nn.Module = nn.Identity()

    def build(
        self, student: Shapes, target: Shapes, context: BuildContext | None = None, teacher: nn.Module | None = None
    ) -> None:
        """Create the connector. Raises RecipeError if the shapes do not fit."""
        student_shape, target_shape = single_tap_shape(student, self), single_tap_shape(target, self)
        self.connector = _make_connector(student_shape, target_shape, self.projector_mode, self)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, minimal (0) if all values of the student are beyond the margin on the teacher's side."""
        require_sides(student, target, self)
        require_built(self.projector_mode != "always" or not isinstance(self.connector, nn.Identity), self)
        student = fit_positions(student, tuple(target.shape[2:]))  # which may differ from batch to batch
        student = upcast_half(self.connector(cast_for(self.connector, student)))
        require_same_channels(student, target, self)
        beyond = torch.where(target > 0, student, -student)
        return self.factor * (self.margin - beyond).clamp(min=0).square().sum() / len(student)


def channel_margins(weight: Tensor, bias: Tensor) -> Tensor:
    """Return OFD's margins, (channels,): the mean of the negative values of Normal(bias, |weight|).

    If hardly any value is negative, -3 |weight|, as in the authors' code.
    """
    # a batch norm's outputs have mean `bias` and standard deviation |weight|; float64, since the tails are small
    dtype = widest_float(weight.device)
    deviation, mean = weight.to(dtype).abs(), bias.to(dtype)
    ratio = mean / deviation.clamp_min(torch.finfo(dtype).tiny)
    negative_probability = torch.special.ndtr(-ratio)
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    # mean of a normal distribution truncated to values below 0
    margin = mean - deviation * density / negative_probability.clamp_min(_MIN_NEGATIVE_PROBABILITY)
    return torch.where(negative_probability > _MIN_NEGATIVE_PROBABILITY, margin, -3 * deviation).to(weight.dtype)


def _make_connector(student: torch.Size, target: torch.Size, mode: ProjectorMode, loss: OFD | AB) -> nn.Module:
    """Return the connector of both papers: a convolution with a kernel of 1 and a batch norm, or nothing."""
    if not needs_projector(student, target, mode, loss):
        return nn.Sequential()
    target_positions(student, target)  # raises if one cannot be resized to the other
    return nn.Sequential(Pointwise(student[1], target[1], bias=False), BatchNorm(target[1]))


def _only_norm(teacher: nn.Module | None, channels: int) -> nn.Module:
    """Return the teacher's batch norm with this many channels. Raises RecipeError unless there is exactly one."""
    norms = [
        (name, module)
        for name, module in (teacher.named_modules() if teacher is not None else ())
        if isinstance(module, Norm) and module.num_features == channels
    ]
    if len(norms) == 1:
        return norms[0][1]
    names = ", ".join(name for name, _ in norms[:8]) or "none"
    raise RecipeError(
        "OFD computes its margins from the teacher's batch norm before the tapped ReLU, but the teacher has "
        f"{len(norms)} batch norms of {channels} channels ({names}); pass one, OFD(teacher.module.layer3.bn), or a "
        "fixed margin, OFD(margin=-1.0)"
    )
