"""Losses on how the samples of a batch relate to each other, so that features of any two shapes can meet.

Each sample is flattened to one vector. The relations are those of the (micro-)batch that a step sees, computed in
float32 or better also under autocast; a batch of one has none, and gives a constant without a gradient that moves.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.features import (
    SILENT,
    Sided,
    in_pairs,
    products,
    same_shape,
    scaled,
    several,
    vectors,
    without_autocast,
)
from kdkit.losses.validation import validate_above_zero, validate_count, validate_switches, validate_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class RKD:
    """Smooth L1 between distances of all pairs, and angles of all triples, of samples (relational distillation).

    Without unit, mean over all batch**2 pairs and batch**3 triples. distance and angle weigh the two terms; the
    defaults are those that RepDistiller and mdistiller take. normalise brings each sample to length 1 first, as mmrazor
    does. At least three samples relate: of two, both terms are constant.

    Formula: distance · mean l(d_s - d_t) + angle · mean l(a_s - a_t), with l smooth L1, d_ij = ‖x_i - x_j‖ over their
        mean where above 0, and a_ijk = cos(x_j - x_i, x_k - x_i)
    Shapes: features (N, C), (N, C, L), (N, C, H, W); any on either side, each sample flattened
    Source: Park et al. 2019, "Relational Knowledge Distillation", arXiv:1904.05068, sec. 3.2
    """

    distance: float = 25.0
    angle: float = 50.0
    normalise: bool = False

    def __post_init__(self) -> None:
        validate_weights(distance=self.distance, angle=self.angle)
        validate_switches(normalise=self.normalise)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum, least (0) where the student's relations are the teacher's."""
        with without_autocast(student):
            sides = [vectors(each) for each in (student, target)]
            if self.normalise:
                sides = [F.normalize(each, dim=1) for each in sides]
            apart = [_distances(each) for each in sides]
            loss = student.new_zeros((), dtype=sides[0].dtype)
            if self.distance:
                mine, theirs = (_relative(each) for each in apart)
                loss = loss + self.distance * F.smooth_l1_loss(mine, theirs)
            if self.angle:
                mine, theirs = (_angles(side, distances) for side, distances in zip(sides, apart, strict=True))
                loss = loss + self.angle * F.smooth_l1_loss(mine, theirs)
        return loss


@dataclass(frozen=True, slots=True)
class SP:
    """Squared error between the rows of similarities of each sample to all others (similarity-preserving distillation).

    Without unit, sum over batch**2 pairs divided by batch**2, summed over the taps, of which there are as many on
    either side.

    Formula: 1/N² · ‖G_s - G_t‖², with G = X Xᵀ whose rows are brought to length 1
    Shapes: features (N, C), (N, C, L), (N, C, H, W); any on either side, each sample flattened
    Source: Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682
    """

    def __call__(self, student: Sided, target: Sided) -> Tensor:
        """Return the error, least (0) where the rows of similarities point the same way."""
        with without_autocast(student):
            mine, theirs = ([self.similarities(tap) for tap in several(side)] for side in (student, target))
            in_pairs(len(mine), len(theirs), self)
            return torch.stack([F.mse_loss(*pair) for pair in zip(mine, theirs, strict=True)]).sum()

    def similarities(self, features: Tensor) -> Tensor:
        """Return each sample's similarities to all, (batch, batch), each row of length 1."""
        return F.normalize(products(scaled(vectors(features))), dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PKT:
    """Divergence between the probabilities that samples are neighbours (probabilistic knowledge transfer).

    The kernel is the cosine's. In nats, mean over batch**2 pairs, each sample being its own neighbour too. eps is added
    to probabilities (1e-7 in RepDistiller and mdistiller; 1e-6 elsewhere).

    Formula: 1/N² · Σ P_t log((P_t + eps) / (P_s + eps)), with P_ij = (1 + cos(x_i, x_j)) / 2, each row over its sum
    Shapes: features (N, C), (N, C, L), (N, C, H, W); any on either side, each sample flattened
    Source: Passalis and Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer",
        arXiv:1803.10837
    """

    eps: float = 1e-7

    def __post_init__(self) -> None:
        validate_above_zero("eps", self.eps)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, least (0) where the neighbours are the same."""
        with without_autocast(student):
            mine, theirs = (self.neighbours(vectors(each)) for each in (student, target))
            return (theirs * ((theirs + self.eps) / (mine + self.eps)).log()).mean()

    def neighbours(self, samples: Tensor) -> Tensor:
        """Return the probability of each sample's neighbours, (batch, batch), from vectors (batch, numbers)."""
        lengths = torch.linalg.vector_norm(samples, dim=1, keepdim=True)
        kernel = (products(samples / (lengths + self.eps)) + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CC:
    """Squared error between the correlations of all pairs under a Gaussian kernel (correlation congruence).

    Without unit, mean over batch**2 pairs of samples brought to length 1. The kernel exp(-gamma ‖x - y‖²) is its Taylor
    series around the right angle, up to that order.

    Formula: 1/N² · ‖K_s - K_t‖², with K_ij = exp(-2 gamma) Σ_k (2 gamma cos(x_i, x_j))^k / k!, k from 0 to order
    Shapes: features (N, C), (N, C, L), (N, C, H, W); any on either side, each sample flattened
    Source: Peng et al. 2019, "Correlation Congruence for Knowledge Distillation", arXiv:1904.01802
    """

    gamma: float = 0.4
    order: int = 2

    def __post_init__(self) -> None:
        validate_above_zero("gamma", self.gamma)
        validate_count("order", self.order)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, least (0) where all correlations are the same."""
        with without_autocast(student):
            mine, theirs = (self.correlations(vectors(each)) for each in (student, target))
            return F.mse_loss(mine, theirs)

    def correlations(self, samples: Tensor) -> Tensor:
        """Return the correlation of each pair, (batch, batch), from vectors (batch, numbers)."""
        cosines = products(F.normalize(samples, dim=1))
        twice = 2 * self.gamma
        terms = [twice**power / math.factorial(power) * cosines**power for power in range(self.order + 1)]
        return math.exp(-twice) * torch.stack(terms).sum(0)


@dataclass(frozen=True, slots=True)
class AdjacentCC:
    """Products of the absolute errors of each two samples that follow each other: what RepDistiller and SemCKD call CC.

    Another quantity than the paper's, and not the same for another order of the batch. In squared units of the feature,
    summed over the numbers of a sample, mean over the batch - 1 pairs.

    Formula: 1/(N - 1) · Σ d_i · d_(i+1), with d = abs(s - t)
    Shapes: features (N, C), (N, C, L), (N, C, H, W); as many numbers on both sides
    Source: public code: RepDistiller, distiller_zoo/CC.py
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the mean product, least (0) where student and teacher are equal."""
        if student[0].numel() != target[0].numel():
            same_shape(student, target, self)
        errors = (vectors(student) - vectors(target)).abs()
        return (errors[1:] * errors[:-1]).sum() / max(len(errors) - 1, 1)


def _distances(samples: Tensor) -> Tensor:
    """Return the distances of all pairs, (batch, batch), exact also where two samples nearly coincide."""
    return torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist")


def _relative(distances: Tensor) -> Tensor:
    """Return distances in units of their mean over the pairs that are apart."""
    apart = (distances > 0).sum().clamp(min=1)
    mean = distances.sum() / apart
    return distances / torch.where(mean > SILENT, mean, 1)


def _angles(samples: Tensor, distances: Tensor) -> Tensor:
    """Return the cosine at sample i between the directions to j and k, (batch, batch, batch); 0 where there is none."""
    inner = products(samples - samples.mean(0))  # near the middle, differences of products keep their digits
    own = inner.diagonal()
    across = inner[None] - inner[:, :, None] - inner[:, None, :] + own[:, None, None]
    sizes = distances[:, :, None] * distances[:, None, :]
    known = sizes > SILENT**2
    return (across / sizes.where(known, 1)).where(known, 0).clamp(-1, 1)
