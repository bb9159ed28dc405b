"""Losses across layers."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.features import Shapes, Sided, direction, full, in_pairs, same_shape, several, without_autocast
from kdkit.losses.projectors import Bottleneck, Fusion, meet
from kdkit.losses.projectors.factory import When, validate_when
from kdkit.losses.projectors.resizing import POOLS
from kdkit.losses.validation import validate_count, validate_temperature

_BATCH = 64  # where neither the loss nor the training says


class SemCKD(nn.Module):
    """Squared error between every student layer and every teacher layer, weighted by how alike they see the batch.

    Any number of taps on either side. In squared units of the feature, mean over the entries of a pair, weighted sum
    over teacher layers, mean over the batch and student layers. The weights are an attention over the teacher's layers,
    between embeddings of `width` of each sample's similarities to the others of its batch (under accumulation, of the
    micro-batch), at most batch_size of them, by default as many as the training's batch holds; a larger one is embedded
    in parts. Where positions differ, the larger are averaged to the smaller. projector "always" makes one for every
    pair, "auto" where channels differ, "never" refuses those. The temperature of the attention is that of the SimKD
    authors' code; the first code has none, as at 1.

    Formula: 1/(N S) · Σ w mean (g(s) - t)², with S student layers and w = softmax(query · key / T) over teacher layers
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Chen et al. 2021, "Cross-Layer Distillation with Semantic Calibration", arXiv:2012.03236
    """

    def __init__(
        self, *, batch_size: int | None = None, width: int = 128, temperature: float = 1.0, projector: When = "always"
    ) -> None:
        super().__init__()
        validate_count("batch_size", batch_size, optional=True)
        validate_count("width", width)
        validate_temperature(temperature)
        validate_when(projector)
        self.batch_size, self.width, self.temperature, self.when = batch_size, width, temperature, projector
        self.others = 0
        self.queries, self.keys = nn.ModuleList(), nn.ModuleList()
        self.projectors = nn.ModuleList()

    def build(self, student: Shapes, target: Shapes, facts: BuildContext, teacher: nn.Module | None) -> None:
        """Make the embeddings and the projectors of all pairs. Raises RecipeError where shapes cannot meet."""
        self.others = self.batch_size or facts.batch_size or _BATCH
        self.queries = nn.ModuleList(_embedding(self.others, self.width) for _ in student)
        self.keys = nn.ModuleList(_embedding(self.others, self.width) for _ in target)
        self.projectors = nn.ModuleList(self._projector(given, wanted) for given in student for wanted in target)

    def forward(self, student: Sided, target: Sided) -> Tensor:
        """Return the weighted error, least (0) where every projected layer is every layer of the teacher."""
        ours, theirs = several(student), several(target)
        pairs = [meet(features, wanted) for features in ours for wanted in theirs]
        errors = [apart(projector(one), other) for projector, (one, other) in zip(self.projectors, pairs, strict=True)]
        return weighted(torch.stack(errors, 1).reshape(-1, len(ours), len(theirs)), self.attend(ours, theirs))

    def attend(self, student: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
        """Return how much each student layer heeds each teacher layer, (batch, student layers, teacher layers)."""
        queries, keys = (
            torch.stack([self._embedded(each, one) for each, one in zip(embeddings, layers, strict=True)], 1)
            for embeddings, layers in ((self.queries, student), (self.keys, target))
        )
        return (full(queries @ keys.mT) / self.temperature).softmax(2)

    def _embedded(self, embedding: nn.Module, features: Tensor) -> Tensor:
        parts = [self._similarities(part) for part in torch.split(full(features).flatten(1), self.others)]
        return direction(full(embedding(torch.cat(parts))))

    def _similarities(self, features: Tensor) -> Tensor:
        """Return each sample's products with all of its part, filled up with zeros to (samples, others)."""
        with without_autocast(features):
            return F.pad(features @ features.T, (0, self.others - len(features)))

    def _projector(self, given: torch.Size, wanted: torch.Size) -> nn.Module:
        one, other = meet(torch.empty(given, device="meta"), torch.empty(wanted, device="meta"))
        if self.when == "always" or (self.when == "auto" and one.shape[1] != other.shape[1]):
            return Bottleneck(one.shape, other.shape, width=2 * other.shape[1], rectified=False)
        if one.shape[1] != other.shape[1]:
            raise RecipeError(
                f"features of {one.shape[1]} channels cannot meet {other.shape[1]} without a projector; "
                "SemCKD(projector='always') makes one for every pair"
            )
        return nn.Identity()


def apart(student: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of each sample, (batch,), mean over its entries."""
    return (full(student) - full(target)).square().flatten(1).mean(1)


def weighted(errors: Tensor, attention: Tensor) -> Tensor:
    """Return errors weighted by attention, both (batch, student layers, teacher layers), as SemCKD adds them up."""
    return (attention * errors).sum() / (errors.shape[0] * errors.shape[1])


def _embedding(given: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(given, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


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

    def build(self, student: Shapes, target: Shapes, facts: BuildContext, teacher: nn.Module | None) -> None:
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
