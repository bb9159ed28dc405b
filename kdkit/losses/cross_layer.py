"""Losses across several layers: attention over all pairs of layers (SemCKD), and knowledge review (HCL, ReviewKD)."""

from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.features import (
    require_built_taps,
    require_channels,
    require_pairs,
    require_same_channels,
    require_same_features,
)
from kdkit.losses.numerics import cast_for, unit_vectors, upcast_half, without_autocast
from kdkit.losses.projectors.convolutional import Bottleneck
from kdkit.losses.projectors.factory import ProjectorMode
from kdkit.losses.projectors.fusion import Fusion
from kdkit.losses.projectors.resizing import POOLS, match_positions
from kdkit.losses.sides import Shapes, TensorOrTuple, as_tuple
from kdkit.losses.validation import require_sides, validate_choice, validate_count, validate_temperature

_DEFAULT_BATCH_SIZE = 64  # of SemCKD, if neither the loss nor the training sets it
_MAX_WIDTH = 512  # of ReviewKD, by default, as in the authors' code


class SemCKD(nn.Module):
    """Squared error between every student layer and every teacher layer, weighted by their semantic similarity.

    Takes any number of taps on either side. In squared units of the feature, mean over the entries of a pair, weighted
    sum over teacher layers, mean over the batch and student layers. The weights are an attention over the teacher's
    layers. It compares embeddings, of size `width`, of each sample's similarities to the other samples of its
    (micro-)batch. An embedding takes at most batch_size similarities, by default the batch size of the training; larger
    batches are embedded in parts. If positions differ, the larger map is average-pooled to the smaller. projector
    "always" makes one for every pair, "auto" if channels differ, "never" raises RecipeError if they differ. The
    authors' width is a quarter of the batch size. The temperature of the attention is that of the SimKD authors' code;
    the original code has none, which is equivalent to 1.

    Formula: 1/(N S) · Σ w mean (g(s) - t)², with S student layers and w = softmax(query · key / T) over teacher layers
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Chen et al. 2021, "Cross-Layer Distillation with Semantic Calibration", arXiv:2012.03236
    """

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        width: int = 128,
        temperature: float = 1.0,
        projector: ProjectorMode = "always",
    ) -> None:
        super().__init__()
        validate_count("batch_size", batch_size, optional=True)
        validate_count("width", width)
        validate_temperature(temperature)
        validate_choice("projector", projector, ProjectorMode)
        self.batch_size, self.width, self.temperature, self.projector_mode = batch_size, width, temperature, projector
        self.part_size = 0
        self.queries, self.keys = nn.ModuleList(), nn.ModuleList()
        self.projectors = nn.ModuleList()

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Create the embeddings and the projectors of all pairs. Raises RecipeError if shapes do not fit."""
        require_channels(self, student, target)
        self.part_size = self.batch_size or context.batch_size or _DEFAULT_BATCH_SIZE
        self.queries = nn.ModuleList(_embedding(self.part_size, self.width) for _ in student)
        self.keys = nn.ModuleList(_embedding(self.part_size, self.width) for _ in target)
        # ordered by student layer, then teacher layer; `forward` relies on it
        self.projectors = nn.ModuleList(self._make_projector(*shapes) for shapes in product(student, target))

    def forward(self, student: TensorOrTuple, target: TensorOrTuple) -> Tensor:
        """Return the weighted error, minimal (0) if every projected layer equals every layer of the teacher."""
        require_sides(student, target, self, taps=True)
        students, targets = as_tuple(student), as_tuple(target)
        require_built_taps((len(students), len(targets)), (len(self.queries), len(self.keys)), self)
        pairs = [match_positions(*pair) for pair in product(students, targets)]
        errors = [
            squared_error_per_sample(self._project(projector, *pair), pair[1])
            for projector, pair in zip(self.projectors, pairs, strict=True)
        ]
        # (batch, pairs) -> (batch, student layers, teacher layers)
        stacked = torch.stack(errors, 1).reshape(-1, len(students), len(targets))
        return attention_weighted_mean(stacked, self.attend(students, targets))

    def attend(self, student: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
        """Return the attention of each student layer to each teacher layer, (batch, student layers, teacher layers)."""
        queries, keys = (
            torch.stack([self._embed(*pair) for pair in zip(embeddings, layers, strict=True)], 1)
            for embeddings, layers in ((self.queries, student), (self.keys, target))
        )
        # (batch, student layers, width) @ (batch, width, teacher layers)
        return (upcast_half(queries @ keys.mT) / self.temperature).softmax(2)

    def _project(self, projector: nn.Module, student: Tensor, target: Tensor) -> Tensor:
        """Return the student's features in the shape of the target's, whose positions may differ between batches."""
        if not isinstance(projector, nn.Identity):
            student = projector(cast_for(projector, student), tuple(target.shape[2:]))
        require_same_channels(student, target, self)
        return student

    def _embed(self, embedding: nn.Module, features: Tensor) -> Tensor:
        """Return the embedded similarities of each sample, (batch, width), of length 1."""
        parts = torch.split(upcast_half(features).flatten(1), self.part_size)
        # autocast would cast the inner products to fp16, in which they may overflow
        with without_autocast(features):
            # inner products of the samples of each part, padded with zeros to (samples, part size)
            similarities = [F.pad(part @ part.T, (0, self.part_size - len(part))) for part in parts]
            return unit_vectors(embedding(cast_for(embedding, torch.cat(similarities))))

    def _make_projector(self, student_shape: torch.Size, target_shape: torch.Size) -> nn.Module:
        # meta tensors have no data, only the shapes that the pair has once its positions are matched
        student, target = match_positions(
            torch.empty(student_shape, device="meta"), torch.empty(target_shape, device="meta")
        )
        channels_differ = student.shape[1] != target.shape[1]
        if self.projector_mode == "always" or (self.projector_mode == "auto" and channels_differ):
            return Bottleneck(student.shape, target.shape, width=2 * target.shape[1], rectified=False)
        if channels_differ:
            raise RecipeError(
                f"features of {student.shape[1]} channels cannot be compared to {target.shape[1]} without a "
                "projector; use SemCKD(projector='always')"
            )
        return nn.Identity()


@dataclass(frozen=True, slots=True, kw_only=True)
class HCL:
    """Mean squared error at several scales of positions: hierarchical context loss, the loss of ReviewKD.

    In squared units of the feature, mean over all entries at each scale, weighted mean over scales, summed over layers,
    one per tap. The first scale is the features themselves. For each further scale, they are average-pooled to the next
    of `grids` positions in every dimension, with half the weight of the previous scale. Grids that are not smaller than
    the first dimension of the positions (height or length) are skipped. The default grids are those of the authors'
    code.

    Formula: Σ_k 2^-k mean (a_k(s) - a_k(t))² / Σ_k 2^-k, with a_k(x) = x averaged to the k-th grid, and a_0(x) = x
    Shapes: features (N, C), (N, C, L), (N, C, H, W); the same on both sides
    Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review", arXiv:2104.09044, sec. 3.3
    """

    grids: tuple[int, ...] = (4, 2, 1)

    def __post_init__(self) -> None:
        if not isinstance(self.grids, tuple):
            raise RecipeError(f"grids is a tuple of integers, such as (4, 2, 1); got {self.grids!r}")
        for grid in self.grids:
            validate_count("a grid", grid)
        if any(after >= before for before, after in pairwise(self.grids)):
            raise RecipeError(f"grids are in decreasing order; got {self.grids}")

    def __call__(self, student: TensorOrTuple, target: TensorOrTuple) -> Tensor:
        """Return the error, minimal (0) if the features are equal."""
        require_sides(student, target, self, taps=True)
        students, targets = as_tuple(student), as_tuple(target)
        require_pairs(len(students), len(targets), self)
        return torch.stack([self.layer(*pair) for pair in zip(students, targets, strict=True)]).sum()

    def layer(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error of one layer."""
        require_same_features(student, target, self)
        student, target = upcast_half(student), upcast_half(target)
        loss, weight, total_weight = F.mse_loss(student, target), 1.0, 1.0
        dimensions = student.ndim - 2
        grids = self.grids if dimensions else ()
        for grid in grids:
            if grid < student.shape[2]:
                weight /= 2
                pool, size = POOLS[dimensions], (grid,) * dimensions
                loss = loss + weight * F.mse_loss(pool(student, size), pool(target, size))
                total_weight += weight
        return loss / total_weight


class ReviewKD(nn.Module):
    """Compare the student's layers, each fused with its deeper ones, to the teacher's at several scales (ReviewKD).

    Takes as many taps of the student as of the teacher, from shallow to deep; a single tap has no deeper layer.
    Channels and positions may differ. In squared units of the feature, summed over layers; see HCL. width: the number
    of channels in which layers are fused, by default that of the student's deepest layer, at most 512, as in the
    authors' code.

    Formula: Σ HCL(f(s), t), with f(s) a layer fused with all deeper ones
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review", arXiv:2104.09044, sec. 3.2 and 3.3
    """

    def __init__(self, *, width: int | None = None, grids: tuple[int, ...] = (4, 2, 1)) -> None:
        super().__init__()
        validate_count("width", width, optional=True)
        self.width = width
        self.context_loss = HCL(grids=grids)
        self.fusions = nn.ModuleList()

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Create a fusion for each layer. Raises RecipeError if the taps are not in pairs, or shapes do not fit."""
        require_channels(self, student, target)
        require_pairs(len(student), len(target), self)
        width = self.width or min(student[-1][1], _MAX_WIDTH)
        self.fusions = nn.ModuleList(
            Fusion(student_shape, target_shape, width=width, first=depth == len(student) - 1)
            for depth, (student_shape, target_shape) in enumerate(zip(student, target, strict=True))
        )

    def forward(self, student: TensorOrTuple, target: TensorOrTuple) -> Tensor:
        """Return the error, minimal (0) if the fused features are the teacher's."""
        require_sides(student, target, self, taps=True)
        students, targets = as_tuple(student), as_tuple(target)
        require_built_taps((len(students), len(targets)), (len(self.fusions),) * 2, self)
        reviewed: list[Tensor] = []
        deeper: Tensor | None = None
        # residual learning of sec. 3.2: from the deepest layer to the shallowest, each passes on its fused features
        layers = zip(self.fusions, students, targets, strict=True)
        for fusion, features, target_features in reversed(list(layers)):
            fused, deeper = fusion(cast_for(fusion, features), deeper, tuple(target_features.shape[2:]))
            require_same_channels(fused, target_features, self)
            reviewed.append(fused)
        return self.context_loss(tuple(reversed(reviewed)), targets)


def squared_error_per_sample(student: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of each sample, (batch,), mean over its entries."""
    return (upcast_half(student) - upcast_half(target)).square().flatten(1).mean(1)


def attention_weighted_mean(errors: Tensor, attention: Tensor) -> Tensor:
    """Return the errors of SemCKD, weighted by its attention, both (batch, student layers, teacher layers).

    Summed over teacher layers, mean over the batch and student layers.
    """
    return (attention * errors).sum() / (errors.shape[0] * errors.shape[1])


def _embedding(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
