"""Losses that review several layers at once: ReviewKD, from the deepest layer to the shallowest."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.conditions import validate_count
from kdkit.losses.loss import Facts
from kdkit.losses.projected import Shapes, Sided, full, in_pairs, same_shape, several
from kdkit.projectors import Fusion
from kdkit.projectors.resizing import POOLS

_WIDEST = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class HCL:
    """Mean squared error at several scales of positions: hierarchical context loss, the loss of ReviewKD.

    In squared units of the feature, mean over all entries at each scale, weighted mean over scales, summed over layers,
    each a tap. The first scale is the features as they are; then they are averaged to each of `grids` positions in
    every dimension, with half the weight of the scale before, those left out that are not smaller than the first
    dimension (the height, the length). Grids as in the authors' code.

    Formula: Σ_k 2^-k mean (a_k(s) - a_k(t))² / Σ_k 2^-k, with a_k(x) = x averaged to the k-th grid, and a_0(x) = x
    Shapes: features (N, C), (N, C, L), (N, C, H, W); the same on both sides
    Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review", arXiv:2104.09044, sec. 3.3
    """

    grids: tuple[int, ...] = (4, 2, 1)

    def __post_init__(self) -> None:
        if not isinstance(self.grids, tuple):
            raise RecipeError(f"grids is a tuple of whole numbers, such as (4, 2, 1); got {self.grids!r}")
        for grid in self.grids:
            validate_count("a grid", grid)
        if any(after >= before for before, after in pairwise(self.grids)):
            raise RecipeError(f"grids become smaller one after the other; got {self.grids}")

    def __call__(self, student: Sided, target: Sided) -> Tensor:
        """Return the error, least (0) where the features are the same."""
        ours, theirs = several(student), several(target)
        in_pairs(len(ours), len(theirs), self)
        return torch.stack([self.layer(*pair) for pair in zip(ours, theirs, strict=True)]).sum()

    def layer(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error of one layer."""
        same_shape(student, target, self)
        student, target = full(student), full(target)
        loss, weight, weights = F.mse_loss(student, target), 1.0, 1.0
        dimensions = student.ndim - 2
        for grid in self.grids if dimensions else ():
            if grid < student.shape[2]:
                weight /= 2
                pool, size = POOLS[dimensions], (grid,) * dimensions
                loss = loss + weight * F.mse_loss(pool(student, size), pool(target, size))
                weights += weight
        return loss / weights


class ReviewKD(nn.Module):
    """A student's layers, each fused with the deeper ones, against a teacher's at several scales.

    As many taps of the student as of the teacher, from shallow to deep (one alone is a layer without a deeper one);
    channels and positions may differ. In squared units of the feature, summed over layers; see HCL. width: the channels
    in which layers are fused, by default those of the student's deepest layer, at most 512, as in the authors' code.

    Formula: Σ HCL(f(s), t), with f(s) a layer fused with all deeper ones
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review", arXiv:2104.09044, sec. 3.2 and 3.3
    """

    def __init__(self, *, width: int | None = None, grids: tuple[int, ...] = (4, 2, 1)) -> None:
        super().__init__()
        validate_count("width", width, optional=True)
        self.width = width
        self.context = HCL(grids=grids)
        self.fusions = nn.ModuleList()

    def build(self, student: Shapes, target: Shapes, facts: Facts, teacher: nn.Module | None) -> None:
        """Make a fusion for each layer. Raises RecipeError where layers are not in pairs, or shapes cannot meet."""
        in_pairs(len(student), len(target), self)
        width = self.width or min(student[-1][1], _WIDEST)
        self.fusions = nn.ModuleList(
            Fusion(given, wanted, width=width, first=depth == len(student) - 1)
            for depth, (given, wanted) in enumerate(zip(student, target, strict=True))
        )

    def forward(self, student: Sided, target: Sided) -> Tensor:
        """Return the error, least (0) where the fused features are the teacher's."""
        reviewed: list[Tensor] = []
        deeper: Tensor | None = None
        for fusion, features in zip(reversed(self.fusions), reversed(several(student)), strict=True):
            fused, deeper = fusion(features, deeper)
            reviewed.append(fused)
        return self.context(tuple(reversed(reviewed)), several(target))
