"""Losses between normalised features (NST, PKD, Patient KD, FT, SRD), their correlations (DIST+) or moments (WKD-F)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.correlation import correlation, least_spread
from kdkit.losses.features import ProjectedLoss, require_pairs, require_positions, require_same_features
from kdkit.losses.numerics import flatten_samples, least_norm, standardise, unit_vectors, upcast_half, without_autocast
from kdkit.losses.projectors.factory import ProjectorKind, ProjectorMode
from kdkit.losses.projectors.resizing import match_positions
from kdkit.losses.sides import TensorOrTuple, as_tuple
from kdkit.losses.validation import (
    Reduction,
    is_number,
    require_sides,
    validate_above_zero,
    validate_at_least_zero,
    validate_count,
    validate_reduction,
    validate_weights,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NST:
    """Squared maximum mean discrepancy between the activation patterns of neurons (channels) over positions.

    Dimensionless, mean over batch and pairs of channels. Patterns have length 1. Channels may differ. If positions
    differ, the larger map is average-pooled to the smaller. degree=1 makes the kernel linear; public code uses degree 2
    and offset 0.

    Formula: mean k(t, t) + mean k(s, s) - 2 mean k(s, t), with k(x, y) = (x · y + offset)^degree of each two channels,
        whose vectors over positions are scaled to length 1
    Shapes: features (N, C, L), (N, C, H, W)
    Source: Huang and Wang 2017, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
        arXiv:1707.01219
    """

    degree: int = 2
    offset: float = 0.0

    def __post_init__(self) -> None:
        validate_count("degree", self.degree)
        validate_at_least_zero("offset", self.offset)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the discrepancy, minimal (0) if the patterns have the same distribution."""
        require_sides(student, target, self)
        least = least_norm(student)
        student, target = match_positions(
            require_positions(upcast_half(student), self), require_positions(upcast_half(target), self)
        )
        # the pattern of a channel is its vector over positions: (batch, channels, positions)
        student, target = (unit_vectors(side.flatten(2), dim=2, least=least) for side in (student, target))
        return self.kernel(target, target) + self.kernel(student, student) - 2 * self.kernel(student, target)

    def kernel(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the mean of the kernel over batch and pairs of channels."""
        with without_autocast(first):  # the loss is a small difference of large means
            return (first @ second.mT.to(first.dtype) + self.offset).pow(self.degree).mean()


class PKD(ProjectedLoss):
    """Half the squared error between features whose channels are standardised: about 1 - Pearson's correlation.

    Dimensionless, mean over all entries. The mean and the unbiased standard deviation of every channel are over batch
    and positions (of the micro-batch, if gradients are accumulated). A channel of equal values, such as a single one,
    becomes 0 and gets no gradient. projector and kind are as in Hint; mmrazor has no projector, and resizes maps with
    other positions.

    Formula: 1/2 · mean (z(g(s)) - z(t))², with z(x) = (x - mean x) / (std x + eps) of each channel
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Cao et al. 2022, "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
        Coefficient", arXiv:2207.02039
    """

    def __init__(self, *, eps: float = 1e-6, projector: ProjectorMode = "auto", kind: ProjectorKind = "linear") -> None:
        super().__init__(projector=projector, kind=kind)
        validate_above_zero("eps", eps)
        self.eps = eps

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, minimal (0) if every channel is fully correlated."""
        return 0.5 * F.mse_loss(self.standardise(student), self.standardise(target))

    def standardise(self, features: Tensor) -> Tensor:
        """Return features whose channels have mean 0 and standard deviation 1."""
        # the unbiased deviation of a single value per channel would be NaN
        correction = 1 if features.numel() > features.shape[1] else 0
        return standardise(features, [0, *range(2, features.ndim)], self.eps, correction=correction)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientKD:
    """Squared distance between the normalised features of one or several layers (Patient KD, PT loss).

    Dimensionless. reduction "batchmean" is the paper's: summed over features and layers, mean over the batch, in [0, 4]
    per layer. "mean" also averages over features and layers, as in the authors' code, whose weights of 10 to 1000 are
    for this reduction: with five layers of 768 features, it is 3840 times smaller. The paper's features are those of
    the class token.

    Formula: 1/N · Σ ‖n(s) - n(t)‖², with n(x) = x / ‖x‖ of each sample
    Shapes: features (N, C), (N, C, L), (N, C, H, W); the same on both sides
    Source: Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression", arXiv:1908.09355, sec. 3.2
    """

    reduction: Reduction = "batchmean"

    def __post_init__(self) -> None:
        validate_reduction(self.reduction)

    def __call__(self, student: TensorOrTuple, target: TensorOrTuple) -> Tensor:
        """Return the distance, minimal (0) if the directions are equal."""
        require_sides(student, target, self, taps=True)
        students, targets = as_tuple(student), as_tuple(target)
        require_pairs(len(students), len(targets), self)
        loss = torch.stack([self.layer(*pair) for pair in zip(students, targets, strict=True)]).sum()
        features = sum(side[0].numel() for side in students)  # of all layers of a sample
        return loss / features if self.reduction == "mean" else loss

    def layer(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance of one layer, summed over its features."""
        require_same_features(student, target, self)
        least = least_norm(student)
        student, target = (unit_vectors(flatten_samples(side), least=least) for side in (student, target))
        return F.mse_loss(student, target, reduction="sum") / len(student)


class FT(ProjectedLoss):
    """Mean absolute difference between the normalised features of both sides (factor transfer, FT).

    Dimensionless, mean over all entries, each difference to the power p. Each sample is one vector, scaled to length 1,
    so that entries are about 1 / √(entries of a sample), and weights of 500 to 1000 are usual. The intended target is
    the teacher's factors: the code of an autoencoder, the paraphraser, trained on its features in a separate stage;
    docs/coming-from.md has an example. The teacher's own features work too. The projector is the paper's translator,
    which has three convolutions, each with batch norm and leaky ReLU; projector and kind are as in Hint.

    Formula: mean |n(g(s)) - n(t)|^p, with n(x) = x / ‖x‖ of each sample and g a projector
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Kim et al. 2018, "Paraphrasing Complex Network: Network Compression via Factor Transfer", arXiv:1802.04977,
        and its authors' code
    """

    def __init__(self, *, p: float = 1.0, projector: ProjectorMode = "always", kind: ProjectorKind = "linear") -> None:
        super().__init__(projector=projector, kind=kind)
        if not is_number(p) or p < 1:  # the gradient of |x|^p is infinite at 0 for p < 1
            raise RecipeError(f"p is a finite number of at least 1; got {p!r}")
        self.p = p

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the difference, minimal (0) if the directions are equal."""
        least = least_norm(student)
        student, target = (unit_vectors(flatten_samples(side), least=least) for side in (student, target))
        return (student - target).abs().pow(self.p).mean()


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
        variance, mean = torch.var_mean(features, [0, *range(2, features.ndim)], correction=0, keepdim=True)
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
