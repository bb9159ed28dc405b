"""Losses on relations between channels, of successive layers (FSP) or of one layer (ICKD)."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.features import (
    ProjectedLoss,
    require_built_taps,
    require_channels,
    require_pairs,
    require_positions,
    require_same_channels,
)
from kdkit.losses.numerics import cast_for, least_norm, unit_vectors, upcast_half, without_autocast
from kdkit.losses.projectors.factory import ProjectorMode
from kdkit.losses.projectors.layers import Pointwise
from kdkit.losses.sides import Shapes, TensorOrTuple, as_tuple
from kdkit.losses.validation import Reduction, require_sides, validate_choice, validate_reduction

# By the number of dimensions of the positions.
_MAX_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}


class SuccessiveTaps(nn.Module):
    """Base class of losses on relations between successive taps, with a projector for each tap of other channels.

    projector: "auto" makes one if channels differ, "always" at every tap, "never" raises RecipeError if they differ.
    Subclasses implement `compare`.
    """

    def __init__(self, *, projector: ProjectorMode = "auto") -> None:
        super().__init__()
        validate_choice("projector", projector, ProjectorMode)
        self.projector_mode = projector
        self.projectors = nn.ModuleList()

    def build(
        self, student: Shapes, target: Shapes, context: BuildContext | None = None, teacher: nn.Module | None = None
    ) -> None:
        """Create the projectors. Raises RecipeError if the taps are not in pairs, or if each side has only one."""
        require_channels(self, student, target)
        require_pairs(len(student), len(target), self)
        if len(student) < 2:
            name = type(self).__name__
            raise RecipeError(
                f"{name} compares successive taps, two or more on each side; got one: Match(teacher, {name}(), "
                "student=(Tap(...), Tap(...)), target=(Tap(...), Tap(...)))"
            )
        self.projectors = nn.ModuleList(
            self._make_projector(student_shape[1], target_shape[1])
            for student_shape, target_shape in zip(student, target, strict=True)
        )

    def forward(self, student: TensorOrTuple, target: TensorOrTuple) -> Tensor:
        """Return the error, minimal (0) if the relations of both sides are equal."""
        require_sides(student, target, self, taps=True)
        students, targets = as_tuple(student), as_tuple(target)
        require_built_taps((len(students), len(targets)), (len(self.projectors),) * 2, self)
        # Relations are products of features, which soon overflow in fp16.
        with without_autocast(student):
            projected = tuple(
                projector(cast_for(projector, require_positions(features, self)))
                for projector, features in zip(self.projectors, students, strict=True)
            )
            for features, target_features in zip(projected, targets, strict=True):
                target_maps = require_positions(target_features, self).flatten(2)
                require_same_channels(features.flatten(2), target_maps, self)
            return self.compare(projected, targets)

    def compare(self, student: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
        """Return the error between taps of as many channels on both sides, (batch, channels, *positions)."""
        raise NotImplementedError

    def _make_projector(self, channels: int, target_channels: int) -> nn.Module:
        differ = channels != target_channels
        name = type(self).__name__
        if differ and self.projector_mode == "never":
            raise RecipeError(
                f"{name} cannot compare {channels} channels to {target_channels} without a projector; use "
                f"{name}(projector='auto')"
            )
        # without a bias, the relations of the mapped channels are the original ones, mapped from both sides
        is_needed = differ or self.projector_mode == "always"
        return Pointwise(channels, target_channels, bias=False) if is_needed else nn.Identity()


class FSP(SuccessiveTaps):
    """Squared error between the channel products of successive layers (flow of the solution procedure, FSP).

    Takes at least two taps on each side, in pairs from shallow to deep, such as the input and the output of a stage.
    Each two successive taps of a network give a matrix: the inner products of all pairs of their channels, averaged
    over positions. If their positions differ, the larger map is max-pooled to the smaller. The positions of the two
    sides may differ. In fourth powers of the feature's unit, summed over matrices. reduction "batchmean" is the
    paper's: summed over the entries of a matrix, mean over the batch. "mean" also averages over the entries, as in
    RepDistiller, which average-pools. projector "auto" maps the student's channels to the teacher's at each tap with
    different channels, "always" at every tap; "never" raises RecipeError if they differ, as in the paper. Its authors
    first train the student with this loss alone, in a stage before the one with labels.

    Formula: 1/N · Σ ‖M(g(s)) - M(t)‖², with M(x) = 1/P · x_a x_bᵀ of two successive taps, each (channels, P positions),
        and g a map over channels if these differ
    Shapes: features (N, C, L), (N, C, H, W)
    Source: Yim et al. 2017, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
        Learning", CVPR 2017
    """

    def __init__(self, *, reduction: Reduction = "batchmean", projector: ProjectorMode = "auto") -> None:
        super().__init__(projector=projector)
        validate_reduction(reduction)
        self.reduction = reduction

    def compare(self, student: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
        """Return the error, minimal (0) if all matrices are equal."""
        reduction = "sum" if self.reduction == "batchmean" else "mean"
        errors = [
            F.mse_loss(self.flow(*ours), self.flow(*theirs), reduction=reduction)
            for ours, theirs in zip(pairwise(student), pairwise(target), strict=True)
        ]
        total = torch.stack(errors).sum()
        return total / len(student[0]) if self.reduction == "batchmean" else total

    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the matrix of two layers, (batch, channels of the first, channels of the second).

        Raises RecipeError if a layer has no positions, or if their numbers of dimensions differ.
        """
        first, second = (upcast_half(require_positions(side, self)) for side in (first, second))
        if first.ndim != second.ndim:
            raise RecipeError(
                "FSP multiplies layers of one network at the same positions, with as many dimensions; got "
                f"{tuple(first.shape)} and {tuple(second.shape)}: tap both as maps, or both as tokens"
            )
        smaller = tuple(min(pair) for pair in zip(first.shape[2:], second.shape[2:], strict=True))
        first, second = (
            side if tuple(side.shape[2:]) == smaller else _MAX_POOLS[len(smaller)](side, smaller)
            for side in (first, second)
        )
        products = first.flatten(2) @ second.flatten(2).mT
        return products / math.prod(smaller)


class ICKD(ProjectedLoss):
    """Squared distance between the correlations of each channel with all channels (inter-channel correlation, ICKD).

    Dimensionless, in [0, 4]: summed over the correlations of a channel, mean over batch and channels. The correlations
    of a channel are its inner products with all channels over positions, scaled to a vector of length 1; a channel of
    zeros has none. projector and kind are as in Hint; the authors always map the student, with a convolution and a
    batch norm. They divide by the number of channels for CIFAR-100, as here. For ImageNet, they also divide by the
    batch size once more, as torchdistill does, so the weight depends on it.

    Formula: 1/(N C) · Σ ‖r_c(g(s)) - r_c(t)‖², with r_c(x) = v / ‖v‖ for the products v = x x_c of channel c with all
        channels of x, (channels, positions), and g a projector if shapes differ
    Shapes: features (N, C, L), (N, C, H, W)
    Source: Liu et al. 2021, "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation",
        arXiv:2202.03680, and its authors' code
    """

    def project(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the student's features in the shape of the target's. Raises RecipeError for pooled features."""
        return super().project(require_positions(student, self), require_positions(target, self))

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance, minimal (0) if all channels have the same correlations, up to the scale of a sample."""
        least = least_norm(student)
        with without_autocast(student):
            student_rows, target_rows = (self.correlations(upcast_half(side), least) for side in (student, target))
        return F.mse_loss(student_rows, target_rows, reduction="sum") / (student.shape[0] * student.shape[1])

    def correlations(self, features: Tensor, least: float) -> Tensor:
        """Return the correlations of each channel with all channels, (batch, channels, channels), each of length 1.

        least: the length up to which features and correlations count as 0.
        """
        maps = features.flatten(2)
        # In units of the feature, not of its square, so that the products of small numbers do not underflow.
        scaled = unit_vectors(features.flatten(1), least=least).reshape(maps.shape)
        return unit_vectors(maps @ scaled.mT, 2, least=least)
