"""Losses that predict a teacher's features from a student's by a small network: VID and MGD."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.features import Projected, Shapes, full, one
from kdkit.losses.projectors import Pointwise, convolution, meet
from kdkit.losses.validation import (
    Reduction,
    validate_above_zero,
    validate_choice,
    validate_count,
    validate_reduction,
    validate_share,
)

Mask = Literal["channel", "position"]


class VID(nn.Module):
    """Negative log likelihood of a teacher's features under a Gaussian that the student's predict.

    In nats without the constant, mean over all entries. Where positions differ, the larger are averaged to the smaller.
    Three maps over channels, of `hidden` channels (as many as the teacher's by default) with ReLU between, predict the
    mean; every channel has a trained variance, which starts at `variance`. The defaults are those of public code.

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
            raise RecipeError(f"the variance to start from is above eps = {eps}; got {variance!r}")
        self.hidden, self.variance, self.eps = hidden, variance, eps
        self.mean: nn.Module = nn.Identity()
        self.scale = nn.Parameter(torch.empty(0))

    def build(self, student: Shapes, target: Shapes, facts: BuildContext, teacher: nn.Module | None) -> None:
        """Make what predicts. Raises RecipeError where the shapes cannot meet."""
        given, wanted = one(student, self), one(target, self)
        meet(torch.empty(given, device="meta"), torch.empty(wanted, device="meta"))
        hidden = self.hidden or wanted[1]
        self.mean = nn.Sequential(
            Pointwise(given[1], hidden, bias=False),
            nn.ReLU(),
            Pointwise(hidden, hidden, bias=False),
            nn.ReLU(),
            Pointwise(hidden, wanted[1], bias=False),
        )
        above = self.variance - self.eps
        self.scale = nn.Parameter(torch.full((wanted[1],), above + math.log(-math.expm1(-above))))  # softplus undone

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the likelihood's negative, lower the better the teacher is predicted."""
        student, target = meet(student, target)
        mean, target = full(self.mean(student)), full(target)
        variance = (F.softplus(self.scale) + self.eps).reshape(-1, *(1 for _ in target.shape[2:]))
        return 0.5 * ((mean - target).square() / variance + variance.log()).mean()


class MGD(Projected):
    """Squared error of the teacher's features as generated from the student's with a part of these masked.

    alpha times the sum over channels and positions, mean over the batch ("batchmean"), or alpha times the mean over all
    entries ("mean", the scale of modelopt). Two convolutions of 3 with ReLU between generate; a linear projector comes
    first where shapes differ. masked: the share of channels (as in the authors' classification code) or of positions
    (as in their detection code) that is hidden, drawn anew at each step from torch's random numbers. mask "position"
    needs positions. alpha and masked are those of the authors' classification code.

    Formula: alpha/N · Σ (G(m · g(s)) - t)², with G the generator, m a random mask and g a projector where shapes differ
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Yang et al. 2022, "Masked Generative Distillation", arXiv:2205.01529
    """

    def __init__(
        self,
        *,
        alpha: float = 7e-5,
        mask: Mask = "channel",
        masked: float = 0.15,
        reduction: Reduction = "batchmean",
    ) -> None:
        super().__init__()
        validate_above_zero("alpha", alpha)
        validate_reduction(reduction)
        validate_choice("mask", mask, Mask)
        validate_share("masked", masked, below_one=True)
        self.alpha, self.mask, self.masked, self.reduction = alpha, mask, masked, reduction
        self.generator: nn.Module = nn.Identity()

    def build(self, student: Shapes, target: Shapes, facts: BuildContext, teacher: nn.Module | None) -> None:
        """Make the projector and what generates. Raises RecipeError where shapes cannot meet."""
        super().build(student, target, facts, teacher)
        _batch, channels, *positions = one(target, self)
        if self.mask == "position" and not positions:
            raise RecipeError("MGD(mask='position') needs positions to mask; mask channels, or tap an earlier layer")
        self.generator = nn.Sequential(
            convolution(len(positions), (channels, channels), 3, padding=1),
            nn.ReLU(),
            convolution(len(positions), (channels, channels), 3, padding=1),
        )

    def between(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, least (0) where the teacher's features are generated."""
        generated = full(self.generator(student * self.kept(student)))
        loss = F.mse_loss(generated, full(target), reduction="sum")
        return self.alpha * loss / (target.numel() if self.reduction == "mean" else len(target))

    def kept(self, features: Tensor) -> Tensor:
        """Return a mask of 1 where features are kept and 0 where they are hidden, which broadcasts to them."""
        batch, channels, *positions = features.shape
        alone = [1] * len(positions)
        shape = [batch, channels, *alone] if self.mask == "channel" else [batch, 1, *positions]
        return (torch.rand(shape, device=features.device) >= self.masked).to(features.dtype)
