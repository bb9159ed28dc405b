"""Losses that predict the teacher's features from the student's with a small network (VID, PAD and MGD)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.features import ProjectedLoss, require_same_channels, single_tap_shape
from kdkit.losses.numerics import cast_for, upcast_half, without_autocast
from kdkit.losses.projectors.factory import ProjectorKind, ProjectorMode
from kdkit.losses.projectors.layers import BatchNorm, Pointwise, convolution, require_dimensions
from kdkit.losses.projectors.resizing import match_positions
from kdkit.losses.sides import Shapes
from kdkit.losses.validation import (
    Reduction,
    require_built,
    require_sides,
    validate_above_zero,
    validate_choice,
    validate_count,
    validate_reduction,
    validate_share,
)

Mask = Literal["channel", "position"]


class VID(nn.Module):
    """Negative log likelihood of the teacher's features under a Gaussian that is predicted from the student's.

    In nats without the constant, mean over all entries. If positions differ, the larger map is average-pooled to the
    smaller. Three maps over channels, of `hidden` channels (by default the teacher's) with ReLU between them, predict
    the mean; every channel has a trained variance, which starts at `variance`. The defaults are those of public code.

    Formula: 1/2 · mean ((t - m(s))² / v + log v), with m the prediction and v = softplus(scale) + eps of each channel
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Ahn et al. 2019, "Variational Information Distillation for Knowledge Transfer", arXiv:1904.05835
    """

    def __init__(self, *, hidden: int | None = None, variance: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        validate_count("hidden", hidden, optional=True)
        validate_above_zero("eps", eps)
        validate_above_zero("variance", variance)
        if variance <= eps:
            raise RecipeError(f"the initial variance is above eps = {eps}; got {variance!r}")
        self.hidden, self.variance, self.eps = hidden, variance, eps
        self.mean: nn.Module = nn.Identity()
        self.scale = nn.Parameter(torch.empty(0))

    def build(
        self, student: Shapes, target: Shapes, context: BuildContext | None = None, teacher: nn.Module | None = None
    ) -> None:
        """Create the network for the mean and the variances. Raises RecipeError if the shapes do not fit."""
        student_shape, target_shape = single_tap_shape(student, self), single_tap_shape(target, self)
        # meta tensors have no data: this only checks that positions can be matched
        match_positions(torch.empty(student_shape, device="meta"), torch.empty(target_shape, device="meta"))
        hidden = self.hidden or target_shape[1]
        self.mean = nn.Sequential(
            Pointwise(student_shape[1], hidden, bias=False),
            nn.ReLU(),
            Pointwise(hidden, hidden, bias=False),
            nn.ReLU(),
            Pointwise(hidden, target_shape[1], bias=False),
        )
        softplus = self.variance - self.eps
        # the inverse of softplus is log(exp(x) - 1) = x + log(1 - exp(-x)), which does not overflow
        initial_scale = softplus + math.log(-math.expm1(-softplus))
        self.scale = nn.Parameter(torch.full((target_shape[1],), initial_scale))

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the negative log likelihood, lower for a better prediction of the teacher; it may be below 0."""
        require_sides(student, target, self)
        require_built(self.scale.numel(), self)
        student, target = match_positions(student, target)
        mean, target = upcast_half(self.mean(cast_for(self.mean, student))), upcast_half(target)
        require_same_channels(mean, target, self)
        # (channels,) -> (channels, 1, ...), which broadcasts over batch and positions
        variance = (F.softplus(self.scale) + self.eps).reshape(-1, *(1 for _ in target.shape[2:]))
        return 0.5 * ((mean - target).square() / variance + variance.log()).mean()


class PAD(ProjectedLoss):
    """Squared error to the teacher's features, divided by a variance that is predicted for each sample (PAD).

    In squared units of the feature over the variance, plus its logarithm; mean over all entries. A map over channels
    with a batch norm predicts the logarithm of the variance of each entry from the projected student, which also gets
    its gradient: entries of a sample that is hard to imitate count less. eps is added to the variance that divides. The
    value may be negative. projector and kind are as in Hint; the authors' features have one shape: the pooled input of
    the classifier. The authors begin with the plain squared error, Hint(), in a stage before this loss.

    Formula: mean ((g(s) - t)² / (v + eps) + log v), with log v = norm(h(g(s))), h a map over channels and g a projector
        if shapes differ
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Zhang et al. 2020, "Prime-Aware Adaptive Distillation", arXiv:2008.01458; public code: torchdistill,
        PADL2Loss
    """

    def __init__(self, *, eps: float = 1e-6, projector: ProjectorMode = "auto", kind: ProjectorKind = "linear") -> None:
        super().__init__(projector=projector, kind=kind)
        validate_above_zero("eps", eps)
        self.eps = eps
        self.log_variance: nn.Module = nn.Identity()

    def build(
        self, student: Shapes, target: Shapes, context: BuildContext | None = None, teacher: nn.Module | None = None
    ) -> None:
        """Create the projector and the map to the variances. Raises RecipeError if the shapes do not fit."""
        super().build(student, target)
        channels = target[0][1]
        self.log_variance = nn.Sequential(Pointwise(channels, channels, bias=False), BatchNorm(channels))

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the loss between the projected student and the target."""
        require_sides(student, target, self)
        # the gradient of the variance grows as the square of the features, which soon exceeds fp16
        with without_autocast(student):
            return super().forward(student, target)

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted error, lower for a better prediction of the teacher; it may be below 0."""
        require_built(not isinstance(self.log_variance, nn.Identity), self)
        log_variance = upcast_half(self.log_variance(cast_for(self.log_variance, student)))
        # 1 / (v + eps) = sigmoid(log eps - log v) / eps, which stays finite for any logarithm
        weight = (math.log(self.eps) - log_variance).sigmoid() / self.eps
        return ((upcast_half(student) - upcast_half(target)).square() * weight + log_variance).mean()


class MGD(ProjectedLoss):
    """Squared error between the teacher's features and features generated from the masked ones of the student (MGD).

    alpha times the sum over channels and positions, mean over the batch ("batchmean"), or alpha times the mean over all
    entries ("mean", the scale of modelopt). The generator is two convolutions with a kernel of 3 and a ReLU between
    them; a linear projector comes first if shapes differ. masked: the share of channels (as in the authors'
    classification code) or of positions (as in their detection code) that is masked, drawn from torch's random numbers
    at each step. mask "position" needs positions. The default alpha and masked are those of the authors' classification
    code.

    Formula: alpha/N · Σ (G(m · g(s)) - t)², with G the generator, m a random mask and g a projector if shapes differ
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Yang et al. 2022, "Masked Generative Distillation", arXiv:2205.01529
    """

    def __init__(
        self, *, alpha: float = 7e-5, mask: Mask = "channel", masked: float = 0.15, reduction: Reduction = "batchmean"
    ) -> None:
        super().__init__()
        validate_above_zero("alpha", alpha)
        validate_reduction(reduction)
        validate_choice("mask", mask, Mask)
        validate_share("masked", masked, below_one=True)
        self.alpha, self.mask, self.masked, self.reduction = alpha, mask, masked, reduction
        self.generator = nn.Sequential(nn.Identity())

    def build(
        self, student: Shapes, target: Shapes, context: BuildContext | None = None, teacher: nn.Module | None = None
    ) -> None:
        """Create the projector and the generator. Raises RecipeError if the shapes do not fit."""
        super().build(student, target)
        _batch, channels, *positions = single_tap_shape(target, self)
        if self.mask == "position" and not positions:
            raise RecipeError("MGD(mask='position') needs positions to mask; mask channels, or tap an earlier layer")
        self.generator = nn.Sequential(
            convolution(len(positions), (channels, channels), 3, padding=1),
            nn.ReLU(),
            convolution(len(positions), (channels, channels), 3, padding=1),
        )

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, minimal (0) if the generated features are the teacher's."""
        require_built(len(self.generator) > 1, self)
        require_dimensions(student, self.generator[0])
        student = cast_for(self.generator, student)
        generated = upcast_half(self.generator(student * self.draw_mask(student)))
        loss = F.mse_loss(generated, upcast_half(target), reduction="sum")
        return self.alpha * loss / (target.numel() if self.reduction == "mean" else len(target))

    def draw_mask(self, features: Tensor) -> Tensor:
        """Return a random mask that broadcasts to the features: 0 for masked entries, 1 for all others."""
        batch, channels, *positions = features.shape
        # one random number per channel, (batch, channels, 1, ...), or per position, (batch, 1, *positions)
        shape = [batch, channels, *[1] * len(positions)] if self.mask == "channel" else [batch, 1, *positions]
        return (torch.rand(shape, device=features.device) >= self.masked).to(features.dtype)
