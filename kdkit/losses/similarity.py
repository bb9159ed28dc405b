"""Losses that are one minus a similarity of features: of their directions, or of what a linear map can find in them."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.features import Projected, full, products, scaled, vectors, without_autocast
from kdkit.losses.projectors.factory import Kind, When
from kdkit.losses.validation import validate_choice, validate_switches

Axis = Literal["all", "channels", "last"]


class Cosine(Projected):
    """One minus the cosine between features, or between outputs.

    In [0, 2], mean over all vectors that are compared. axis says what a vector is: "all" flattens each sample to one;
    "channels" takes one at each position of (batch, channels, ...); "last" takes one for each token of (batch, tokens,
    channels). projector and kind are those of Hint.

    Formula: 1 - mean cos(g(s), t), with g a projector where shapes differ
    Shapes: features (N, C), (N, C, L), (N, C, H, W); outputs too
    Source: Sanh et al. 2019, "DistilBERT, a distilled version of BERT", arXiv:1910.01108, sec. 2
    """

    def __init__(self, *, projector: When = "auto", kind: Kind = "linear", axis: Axis = "all") -> None:
        super().__init__(projector=projector, kind=kind)
        validate_choice("axis", axis, Axis)
        self.axis: Axis = axis

    def between(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance, least (0) where the directions are the same."""
        student, target = full(student), full(target)
        if self.axis == "all":
            student, target = student.flatten(1), target.flatten(1)
        return (1 - F.cosine_similarity(student, target, dim=-1 if self.axis == "last" else 1)).mean()


@dataclass(frozen=True, slots=True, kw_only=True)
class CKA:
    """One minus the linear centred kernel alignment of a batch.

    Without unit. It does not see rotations or the scale of either side, and of two samples is always 0. unbiased takes
    the estimator of HSIC without bias (Song et al. 2012), for small batches; it may leave [0, 1]. A batch with too
    little to compare gives 1 without a gradient: one sample, or, unbiased, fewer than four or a similarity with itself
    that is not above 0. It is that of the (micro-)batch, in float32 or better also under autocast.

    Formula: 1 - ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖), with X and Y the centred rows of s and t
    Shapes: features (N, C), (N, C, L), (N, C, H, W); any on either side, each sample flattened
    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", arXiv:1905.00414, sec. 3
    """

    unbiased: bool = False

    def __post_init__(self) -> None:
        validate_switches(unbiased=self.unbiased)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance, least (0) where one side is the other, turned and scaled, when not unbiased."""
        with without_autocast(student):
            mine, theirs = (products(scaled(each - each.mean(0))) for each in (vectors(student), vectors(target)))
            if self.unbiased:
                mine, theirs = (each - each.diagonal().diag() for each in (mine, theirs))
            across, own, other = (self.hsic(*two) for two in ((mine, theirs), (mine, mine), (theirs, theirs)))
            known = (own > 0) & (other > 0)
            lengths = own.where(known, 1).sqrt() * other.where(known, 1).sqrt()
            return 1 - across.where(known, 0) / lengths

    def hsic(self, one: Tensor, other: Tensor) -> Tensor:
        """Return how far two kernels (batch, batch) depend on each other; a factor that cancels is left out."""
        shared = (one * other).sum()
        count = len(one)
        if not self.unbiased:
            return shared
        if count < 4:
            return shared * 0.0
        means = one.sum() * other.sum() / ((count - 1) * (count - 2))
        return shared + means - 2 * (one.sum(0) * other.sum(0)).sum() / (count - 2)
