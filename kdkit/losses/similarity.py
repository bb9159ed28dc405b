"""Losses on similarities: the cosine of features, their centred kernel alignment (CKA), and those of positions."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.features import ProjectedLoss, require_positions
from kdkit.losses.numerics import (
    MIN_NORM,
    flatten_samples,
    gram_matrix,
    least_norm,
    rescale_by_max,
    unit_vectors,
    upcast_half,
    without_autocast,
)
from kdkit.losses.projectors.factory import ProjectorKind, ProjectorMode
from kdkit.losses.projectors.resizing import match_positions
from kdkit.losses.validation import is_number, require_sides, validate_choice, validate_switches

Axis = Literal["all", "channels", "last"]

_ROUNDING = 100  # in units of the last place: how far apart the terms of an HSIC that is 0 come out


class Cosine(ProjectedLoss):
    """One minus the cosine between features, or between outputs.

    In [0, 2], mean over all vectors that are compared. axis selects the vectors: "all" flattens each sample to one;
    "channels" takes one at each position of (batch, channels, ...); "last" takes one for each token of (batch, tokens,
    channels). projector and kind are as in Hint.

    Formula: 1 - mean cos(g(s), t), with each sample flattened to a vector and g a projector if shapes differ
    Shapes: features (N, C), (N, C, L), (N, C, H, W); outputs too
    Source: Sanh et al. 2019, "DistilBERT, a distilled version of BERT", arXiv:1910.01108, sec. 2
    """

    def __init__(
        self, *, projector: ProjectorMode = "auto", kind: ProjectorKind = "linear", axis: Axis = "all"
    ) -> None:
        super().__init__(projector=projector, kind=kind)
        validate_choice("axis", axis, Axis)
        self.axis: Axis = axis

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance, minimal (0) if the directions are equal."""
        least = least_norm(student)
        student, target = upcast_half(student), upcast_half(target)
        if self.axis == "all":
            student, target = student.flatten(1), target.flatten(1)
        dim = -1 if self.axis == "last" else 1
        student, target = (unit_vectors(side, dim, least=least) for side in (student, target))
        return (1 - (student * target).sum(dim)).mean()


@dataclass(frozen=True, slots=True, kw_only=True)
class CKA:
    """One minus the linear centred kernel alignment of a batch.

    Dimensionless. Invariant to rotations and to the scale of either side; always 0 for two samples. unbiased uses the
    unbiased estimator of HSIC (Song et al. 2012), for small batches; the loss may then leave [0, 1]. A batch that is
    too small gives 1 without a gradient: one sample, or, if unbiased, fewer than four samples or a side whose
    similarity with itself is not above rounding. The batch is the (micro-)batch of a step, computed in float32 or
    better, under autocast too.

    Formula: 1 - ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖), with X and Y the centred rows of s and t
    Shapes: features (N, C), (N, C, L), (N, C, H, W); any on either side, each sample flattened
    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", arXiv:1905.00414, sec. 3
    """

    unbiased: bool = False

    def __post_init__(self) -> None:
        validate_switches(unbiased=self.unbiased)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance, minimal (0) if one side is the other, rotated and scaled, unless `unbiased`."""
        require_sides(student, target, self)
        with without_autocast(student):
            # kernels of the centred samples, (batch, batch); ‖Yᵀ X‖² is the inner product of two kernels
            least = least_norm(student)
            student_kernel, target_kernel = (
                gram_matrix(rescale_by_max(samples - samples.mean(0), least=least))
                for samples in (flatten_samples(student), flatten_samples(target))
            )
            if self.unbiased:
                # the unbiased estimator leaves out the similarity of a sample with itself
                student_kernel, target_kernel = (
                    kernel - kernel.diagonal().diag() for kernel in (student_kernel, target_kernel)
                )
            cross = self.hsic(student_kernel, target_kernel)
            student_self, target_self = (
                self.hsic(student_kernel, student_kernel),
                self.hsic(target_kernel, target_kernel),
            )
            # an estimate of 0 or below has no square root; the inner `where` keeps its gradient finite
            undefined = (student_self <= self.rounding(student_kernel)) | (target_self <= self.rounding(target_kernel))
            defined = ~undefined  # also for NaN, which must stay visible
            norms = student_self.where(defined, 1).sqrt() * target_self.where(defined, 1).sqrt()
            return 1 - cross.where(defined, 0) / norms

    def hsic(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the HSIC of two kernels (batch, batch), up to a factor that cancels in CKA."""
        shared = (first * second).sum()
        count = len(first)
        if not self.unbiased:
            return shared
        if count < 4:  # the estimator divides by batch - 3
            return shared * 0.0
        # HSIC_1 of Song et al. 2012
        means = first.sum() * second.sum() / ((count - 1) * (count - 2))
        return shared + means - 2 * (first.sum(0) * second.sum(0)).sum() / (count - 2)

    def rounding(self, kernel: Tensor) -> Tensor | float:
        """Return the value up to which the HSIC of a kernel (batch, batch) with itself may be rounding."""
        # The unbiased estimate is a difference of terms of this size, which may cancel; the other is a sum of squares.
        return _ROUNDING * torch.finfo(kernel.dtype).eps * kernel.detach().square().sum() if self.unbiased else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairwiseAffinity:
    """Mean squared difference of the cosines between all positions of a map (pair-wise distillation).

    Dimensionless. It compares the structure of a scene, such as in segmentation. Maps are first reduced by max pooling
    to nodes: patch is the side of a pooled patch as a share of the map's, 0.5 for two by two nodes as in the authors'
    code; None compares all positions, which needs memory for all pairs. The gradient is that of the cosines; the
    authors' code divides by lengths that get no gradient, so it also changes the lengths of the vectors.

    Formula: 1/(N P²) · Σ (A(s) - A(t))², with A(x) = cosines between the channels of the P nodes of x
    Shapes: features (N, C, L), (N, C, H, W)
    Source: Liu et al. 2019, "Structured Knowledge Distillation for Semantic Segmentation", arXiv:1903.04197, eq. 2
    """

    patch: float | None = 0.5

    def __post_init__(self) -> None:
        if self.patch is not None and not (is_number(self.patch) and 0 < self.patch <= 0.5):
            raise RecipeError(f"patch is a share of a side of the map, in (0, 0.5], or None; got {self.patch!r}")

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the difference, minimal (0) if the nodes of both sides are in the same relation to each other."""
        require_sides(student, target, self)
        with without_autocast(student):
            least = least_norm(student)
            student, target = match_positions(
                require_positions(upcast_half(student), self), require_positions(upcast_half(target), self)
            )
            return F.mse_loss(self.affinity(student, least=least), self.affinity(target, least=least))

    def affinity(self, features: Tensor, *, least: float = MIN_NORM) -> Tensor:
        """Return the cosines between the nodes of each sample, (batch, nodes, nodes).

        least: the length up to which vectors count as 0.
        """
        nodes = features
        if self.patch is not None:
            pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[nodes.ndim - 2]
            patch = [max(1, int(size * self.patch)) for size in nodes.shape[2:]]
            nodes = pool(nodes, patch, stride=patch, ceil_mode=True)
        vectors = unit_vectors(nodes.flatten(2), least=least)  # (batch, channels, nodes)
        return vectors.transpose(1, 2) @ vectors
