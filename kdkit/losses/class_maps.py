"""Losses on a classifier's outputs at every position: regions at several scales (SDD), and class maps (CATKD)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildableLoss, BuildContext, Loss, extra_kwargs_of
from kdkit.losses.decoupled import DKD
from kdkit.losses.features import require_positions
from kdkit.losses.multi_teacher import has_independent_samples, per_sample_losses
from kdkit.losses.numerics import least_norm, unit_vectors, upcast_half
from kdkit.losses.positions import as_rows
from kdkit.losses.projectors.resizing import match_positions, resize
from kdkit.losses.validation import (
    require_class_labels,
    require_same_outputs,
    require_sides,
    validate_above_zero,
    validate_count,
)

_PROBE = torch.Size((4, 3))  # the shape of the outputs that a loss is tried on


@dataclass(frozen=True, slots=True, kw_only=True)
class SDD:
    """Apply a loss on outputs to the regions of a map at several scales (scale-decoupled distillation).

    The unit is that of `loss`, mean over all samples and regions. Both sides are the classifier's outputs at every
    position. ClassifierTap(layer, classifier) captures them in a network that pools before its classifier; the mean
    over a region is the output for its pooled features. scales: the number of regions along each dimension, (1, 2, 4)
    for the whole map, its quarters and its sixteenths, or halves and quarters of a signal. A region counts
    `disagreement` times if the teacher is right about the region and wrong about the whole map, or the other way round.

    loss: a loss on outputs that is a mean over samples, without weights; it may take labels. SoftTargets() and NKD()
    give SD-KD and SD-NKD; the authors' NKD keeps the correct class among the others. Their code takes the logarithm of
    a softmax, so the loss is infinite for confident students and is then set to 0; here it stays finite.

    Formula: mean w loss(s_r, t_r), with r the regions of all scales, s_r the mean of s over r, and w = disagreement if
        exactly one of argmax t_r and argmax t is y, else 1
    Shapes: features (N, C, L), (N, C, H, W), of C classes; labels (N,)
    Source: Wei et al. 2024, "Scale Decoupled Distillation", arXiv:2403.13512, and its authors' code
    """

    loss: Loss = field(default_factory=DKD)
    scales: Sequence[int] = (1, 2, 4)
    disagreement: float = 2.0
    # Computed once, because torch's compiler does not trace through signatures.
    _takes_labels: bool = field(init=False, repr=False, compare=False)

    requires = frozenset({"hard_labels"})

    def __post_init__(self) -> None:
        if not isinstance(self.scales, Sequence) or not self.scales or isinstance(self.scales, str):
            raise RecipeError(
                f"scales are numbers of regions along each dimension, such as (1, 2, 4); got {self.scales!r}"
            )
        for scale in self.scales:
            validate_count("a scale", scale)
        validate_above_zero("disagreement", self.disagreement)
        object.__setattr__(self, "scales", tuple(self.scales))  # a list would neither be hashable nor equal to a tuple
        _require_mean_over_samples(self.loss)
        object.__setattr__(self, "_takes_labels", bool(extra_kwargs_of(self.loss)))

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the weighted mean over samples and regions."""
        require_sides(student, target, self)
        labels = require_class_labels(labels, student, self)
        student, target = (upcast_half(require_positions(side, self)) for side in (student, target))
        student_regions, target_regions = self.regions(student, target)  # (batch, classes, regions)
        require_same_outputs(student_regions, target_regions, self, dense=True)
        is_right = target_regions.argmax(1) == labels[:, None]  # (batch, regions)
        is_right_of_all = target.flatten(2).mean(2).argmax(1) == labels
        weights = torch.where(is_right == is_right_of_all[:, None], 1.0, self.disagreement)
        # (batch, classes, regions) -> (batch * regions, classes)
        student_rows, target_rows = as_rows(student_regions), as_rows(target_regions)
        kwargs: dict[str, Tensor] = {}
        if self._takes_labels:
            kwargs["labels"] = labels.repeat_interleave(student_regions.shape[2])
        values = per_sample_losses(self.loss, student_rows, target_rows, kwargs)
        return (weights.flatten() * values).mean()

    def regions(self, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of every region of both sides, (batch, classes, regions), the largest regions first."""
        student, target = _same_dimensions(student, target)
        pooled: list[tuple[Tensor, ...]] = []
        for scale in sorted(self.scales):
            positions = _at_most(scale, student, target)
            pooled.append(tuple(resize(side, positions).flatten(2) for side in (student, target)))
        student_regions, target_regions = (torch.cat(sides, 2) for sides in zip(*pooled, strict=True))
        return student_regions, target_regions


@dataclass(frozen=True, slots=True, kw_only=True)
class CATKD:
    """Squared error between normalised class maps (class attention transfer).

    Dimensionless, mean over all entries; the authors use a weight of 400. Both sides are class activation maps, the
    classifier's outputs at every position: ClassifierTap(layer, classifier) captures them in a network that pools
    before its classifier. Maps are average-pooled to `resolution` positions along each dimension, then the map of each
    class is scaled to length 1. For networks of one kind, the authors' code does not scale them and uses smaller
    weights. Its options to binarise maps and to select classes are left out.

    Formula: mean (n(s) - n(t))², with n(x) = x / ‖x‖ of each class of the pooled maps
    Shapes: features (N, C, L), (N, C, H, W), of C classes
    Source: Guo et al. 2023, "Class Attention Transfer Based Knowledge Distillation", arXiv:2304.12777, and
        its authors' code
    """

    resolution: int = 2

    def __post_init__(self) -> None:
        validate_count("resolution", self.resolution)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, minimal (0) if the maps of every class are equal up to their scale."""
        require_sides(student, target, self)
        least = least_norm(student)
        student, target = (upcast_half(require_positions(side, self)) for side in (student, target))
        student, target = _same_dimensions(student, target)
        positions = _at_most(self.resolution, student, target)
        student, target = (resize(side, positions).flatten(2) for side in (student, target))
        require_same_outputs(student, target, self, dense=True)
        student, target = (unit_vectors(side, dim=2, least=least) for side in (student, target))
        return F.mse_loss(student, target)


def _same_dimensions(student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sides with the same number of dimensions; tokens become a map if the other side is one."""
    return (student, target) if student.ndim == target.ndim else match_positions(student, target)


def _at_most(count: int, student: Tensor, target: Tensor) -> tuple[int, ...]:
    """Return `count` positions along each dimension, or as many as both sides have."""
    return tuple(min(count, *sizes) for sizes in zip(student.shape[2:], target.shape[2:], strict=True))


def _require_mean_over_samples(loss: object) -> None:
    """Raise RecipeError unless a loss can be computed for each region separately."""
    context = BuildContext(classes=("0", "1", "2"), task="multiclass", samples=None, ids=False)
    if (
        not callable(loss)
        or isinstance(loss, type | BuildableLoss)
        or extra_kwargs_of(loss) - {"labels"}
        or not has_independent_samples(loss, _PROBE, _PROBE, context)
    ):
        raise RecipeError(
            "SDD takes a loss on outputs that is a mean over samples, without weights, and without extra keyword "
            f"arguments other than labels, such as SoftTargets(), DKD() or NKD(); got {loss!r}"
        )
