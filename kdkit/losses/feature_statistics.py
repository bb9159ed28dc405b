"""Losses between normalised, correlated or pooled features: SRD, the feature terms of DIST+, and WKD-F."""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from kdkit.errors import RecipeError
from kdkit.losses.correlation import correlation, least_spread
from kdkit.losses.features import ProjectedLoss, least_norm, require_positions, upcast_half
from kdkit.losses.projectors.factory import ProjectorKind, ProjectorMode
from kdkit.losses.validation import (
    is_number,
    validate_above_zero,
    validate_at_least_zero,
    validate_count,
    validate_weights,
)


class SRD(ProjectedLoss):
    """Logarithm of a sum of powers of the differences between batch-normalised features (simple recipe, SRD).

    The sum is over all entries, so the value grows with the logarithm of the batch size, and the gradient does not
    depend on the scale of the differences. Each channel is normalised over batch and positions (of the micro-batch, if
    gradients are accumulated), without trained scales. Both features are usually pooled, and the projector linear. eps
    is added to the sum: without it, as in the authors' code for ImageNet and torchdistill, equal features give -inf.
    The default exponent is that of this code, which gives the loss a weight of 2, adds SoftTargets(temperature=1), and
    uses 1e-4 in place of the 1e-5 below. The authors' code for DeiT uses another loss: one minus the correlation of
    each channel.

    Formula: log(Σ |z(g(s)) - z(t)|^exponent + eps), with z(x) = (x - mean x) / √(var x + 1e-5) of each channel and g a
        projector
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Miles and Mikolajczyk 2024, "Understanding the Role of the Projector in Knowledge Distillation",
        arXiv:2303.11098; public code: torchdistill, SRDLoss
    """

    def __init__(
        self,
        *,
        exponent: float = 4.0,
        eps: float = 1e-8,
        projector: ProjectorMode = "always",
        kind: ProjectorKind = "linear",
    ) -> None:
        super().__init__(projector=projector, kind=kind)
        validate_above_zero("eps", eps)
        if not is_number(exponent) or exponent < 1:  # the gradient of |x|^a is infinite at 0 for a < 1
            raise RecipeError(f"exponent is a finite number of at least 1; got {exponent!r}")
        self.exponent, self.eps = exponent, eps

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the logarithm, minimal (log eps) if the normalised features are equal."""
        difference = self.standardise(upcast_half(student)) - self.standardise(upcast_half(target))
        return (difference.abs().pow(self.exponent).sum() + self.eps).log()

    def standardise(self, features: Tensor) -> Tensor:
        """Return features whose channels have mean 0 and variance 1, like a batch norm without weights."""
        all_but_channels = [dimension for dimension in range(features.ndim) if dimension != 1]
        variance, mean = torch.var_mean(features, all_but_channels, correction=0, keepdim=True)
        return (features - mean) * (variance + 1e-5).rsqrt()  # 1e-5 is the eps of torch's batch norm


class DISTPlus(ProjectedLoss):
    """One minus the correlation of features, over the channels of a position and over the samples (part of DIST+).

    Dimensionless. channel weighs the correlation over the channels, averaged over samples and positions. spatial weighs
    the correlation over the samples of the (micro-)batch, of the sum over channels at each position, averaged over
    positions. torchdistill calls the weights iota and kappa. A constant vector counts as uncorrelated. projector and
    kind are as in Hint. DIST+ adds DIST() on the outputs. torchdistill adds the channel correlation itself, not one
    minus it, which drives the features apart.

    Formula: channel (1 - mean corr over channels of (g(s), t)) + spatial (1 - mean corr over samples of (Σ g(s), Σ t)),
        with Σ the sum over channels and g a projector if shapes differ
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: public code: torchdistill 1.1.5, DISTPlusLoss; Huang et al. 2025, "DIST+: Knowledge Distillation From a
        Stronger Adaptive Teacher", TPAMI
    """

    def __init__(
        self,
        *,
        channel: float = 1.0,
        spatial: float = 1.0,
        eps: float = 1e-8,
        projector: ProjectorMode = "auto",
        kind: ProjectorKind = "linear",
    ) -> None:
        super().__init__(projector=projector, kind=kind)
        validate_weights(channel=channel, spatial=spatial)
        validate_above_zero("eps", eps)
        self.channel, self.spatial, self.eps = channel, spatial, eps

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum, minimal (0) if all vectors are fully correlated."""
        limits = {"spread": least_spread(student), "least": least_norm(student)}
        student, target = upcast_half(student), upcast_half(target)
        loss = student.new_zeros(())
        if self.channel:
            loss = self.channel * (1 - correlation(student, target, 1, self.eps, **limits).mean())
        if self.spatial:
            student, target = (side.sum(1, keepdim=True).flatten(1) for side in (student, target))  # (batch, positions)
            loss = loss + self.spatial * (1 - correlation(student, target, 0, self.eps, **limits).mean())
        return loss


class WKDF(ProjectedLoss):
    """Squared Wasserstein distance between Gaussians with the mean and the deviation of each channel (WKD-F).

    In squared units of the feature, summed over channels, mean over batch and cells. mean weighs the squared difference
    of means relative to that of standard deviations, both over the positions of a cell; the authors' code uses 4 for
    CIFAR-100 and 2 for ImageNet. grid: the number of cells along each dimension of the positions; in the authors' code
    it is 1 or 4, depending on the pair of networks, and 4 for ImageNet. Variances are unbiased, 0 for a cell with one
    position. projector and kind are as in Hint; the authors always project, with a convolution, batch norm and ReLU as
    in kind "conv" or, for ImageNet, with three convolutions.

    Formula: 1/(N cells) · Σ (a (m(g(s)) - m(t))² + (d(g(s)) - d(t))²), with a the option mean, m the mean of a channel
        in a cell, d = √(var + eps) its deviation and g a projector if shapes differ
    Shapes: features (N, C, L), (N, C, H, W)
    Source: Lv et al. 2024, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
        arXiv:2412.08139, and its authors' code
    """

    def __init__(
        self,
        *,
        mean: float = 4.0,
        grid: int = 1,
        eps: float = 1e-5,
        projector: ProjectorMode = "auto",
        kind: ProjectorKind = "linear",
    ) -> None:
        super().__init__(projector=projector, kind=kind)
        validate_at_least_zero("mean", mean)
        validate_count("grid", grid)
        validate_above_zero("eps", eps)
        self.mean, self.grid, self.eps = mean, grid, eps

    def project(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the student's features in the shape of the target's. Raises RecipeError for pooled features."""
        return super().project(require_positions(student, self), require_positions(target, self))

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance, minimal (0) if all means and deviations are equal."""
        loss = student.new_zeros((), dtype=upcast_half(student).dtype)
        cells = list(self.cells(tuple(target.shape[2:])))
        for cell in cells:
            (student_mean, student_deviation), (target_mean, target_deviation) = (
                self.statistics(upcast_half(side)[cell].flatten(2)) for side in (student, target)
            )
            # W2² of Gaussians with diagonal covariances: ‖m - m'‖² + ‖d - d'‖²
            loss = loss + self.mean * (student_mean - target_mean).square().sum()
            loss = loss + (student_deviation - target_deviation).square().sum()
        return loss / (len(student) * len(cells))

    def cells(self, positions: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        """Yield the slices of each cell; cells overlap if the grid does not divide the positions."""
        ranges = (
            [slice(size * cell // self.grid, -(-size * (cell + 1) // self.grid)) for cell in range(self.grid)]
            for size in positions
        )
        for cell in product(*ranges):
            yield slice(None), slice(None), *cell  # all samples and channels

    def statistics(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation over positions of (batch, channels, positions)."""
        # the unbiased variance of one position would be NaN
        variance, mean = torch.var_mean(features, 2, correction=1 if features.shape[2] > 1 else 0)
        return mean, (variance + self.eps).sqrt()
