"""Losses on the relations between the samples of a batch, which compare features of any two shapes.

Each sample is flattened to one vector. The relations are those of the (micro-)batch of a step, computed in float32 or
better, under autocast too. A batch of one sample has no relations: its loss is constant and its gradient 0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.features import (
    MIN_NORM,
    TensorOrTuple,
    as_tuple,
    flatten_samples,
    gram_matrix,
    least_norm,
    require_pairs,
    require_same_features,
    rescale_by_max,
    unit_vectors,
    without_autocast,
)
from kdkit.losses.validation import (
    require_sides,
    validate_above_zero,
    validate_count,
    validate_switches,
    validate_weights,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RKD:
    """Smooth L1 between distances of all pairs, and angles of all triples, of samples (relational distillation).

    Dimensionless, mean over all batch**2 pairs and batch**3 triples. distance and angle weigh the two terms; the
    defaults are those of RepDistiller and mdistiller. normalise scales each sample to length 1 first, as mmrazor does.
    Needs at least three samples: for two, both terms are constant. Samples that are closer than the precision of the
    batch have no angle, which counts as a cosine of 0; in public code they get a gradient of about 1e12, and count in
    the mean distance.

    Formula: distance · mean l(d_s - d_t) + angle · mean l(a_s - a_t), with l smooth L1, d_ij = ‖x_i - x_j‖ over their
        mean above 0, and a_ijk = cos(x_j - x_i, x_k - x_i)
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
        """Return the weighted sum, minimal (0) if the student's relations are the teacher's."""
        require_sides(student, target, self)
        with without_autocast(student):
            sides = [flatten_samples(side) for side in (student, target)]
            least = least_norm(student)
            if self.normalise:
                sides = [unit_vectors(samples, least=least) for samples in sides]
            # The distances of all pairs, (batch, batch). cdist's default for large batches uses ‖x‖² + ‖y‖² - 2 x·y,
            # which cancels for samples that are close together.
            distances = [torch.cdist(side, side, compute_mode="donot_use_mm_for_euclid_dist") for side in sides]
            loss = student.new_zeros((), dtype=sides[0].dtype)
            if self.distance:  # sec. 3.2.1, distance-wise loss
                student_relative, target_relative = (_relative(matrix, least) for matrix in distances)
                loss = loss + self.distance * F.smooth_l1_loss(student_relative, target_relative)
            if self.angle:  # sec. 3.2.2, angle-wise loss
                student_angles, target_angles = (
                    _angles(*pair, least=least) for pair in zip(sides, distances, strict=True)
                )
                loss = loss + self.angle * F.smooth_l1_loss(student_angles, target_angles)
        return loss


@dataclass(frozen=True, slots=True)
class SP:
    """Squared error between the similarities of each sample to all others (similarity-preserving distillation).

    Dimensionless, summed over batch**2 pairs and divided by batch**2, summed over the taps. Both sides have the same
    number of taps.

    Formula: 1/N² · ‖G_s - G_t‖², with G = X Xᵀ whose rows are scaled to length 1
    Shapes: features (N, C), (N, C, L), (N, C, H, W); any on either side, each sample flattened
    Source: Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682
    """

    def __call__(self, student: TensorOrTuple, target: TensorOrTuple) -> Tensor:
        """Return the error, minimal (0) if the rows of similarities have the same direction."""
        require_sides(student, target, self, taps=True)
        with without_autocast(student):
            students, targets = ([self.similarities(tap) for tap in as_tuple(side)] for side in (student, target))
            require_pairs(len(students), len(targets), self)
            return torch.stack([F.mse_loss(*pair) for pair in zip(students, targets, strict=True)]).sum()

    def similarities(self, features: Tensor) -> Tensor:
        """Return the similarities of each sample to all samples, (batch, batch), each row of length 1."""
        # the rows are normalised, so the scale cancels and rescaling only prevents overflow and underflow
        least = least_norm(features)
        return unit_vectors(gram_matrix(rescale_by_max(flatten_samples(features), least=least)), least=least)


@dataclass(frozen=True, slots=True, kw_only=True)
class PKT:
    """Divergence between the probabilities that samples are neighbours (probabilistic knowledge transfer).

    The kernel is the cosine. In nats, mean over batch**2 pairs; each sample is its own neighbour too. eps is added to
    probabilities (1e-7 in RepDistiller and mdistiller; 1e-6 elsewhere).

    Formula: 1/N² · Σ P_t log((P_t + eps) / (P_s + eps)), with P_ij = (1 + cos(x_i, x_j)) / 2, each row over its sum
    Shapes: features (N, C), (N, C, L), (N, C, H, W); any on either side, each sample flattened
    Source: Passalis and Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer",
        arXiv:1803.10837
    """

    eps: float = 1e-7

    def __post_init__(self) -> None:
        validate_above_zero("eps", self.eps)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if the neighbour probabilities are equal."""
        require_sides(student, target, self)
        with without_autocast(student):
            least = least_norm(student)
            student, target = (self.neighbours(flatten_samples(side), least=least) for side in (student, target))
            return (target * ((target + self.eps) / (student + self.eps)).log()).mean()

    def neighbours(self, samples: Tensor, *, least: float = MIN_NORM) -> Tensor:
        """Return the neighbour probabilities of each sample, (batch, batch), from vectors (batch, numbers).

        least: the length up to which vectors count as 0.
        """
        lengths = torch.linalg.vector_norm(samples, dim=1, keepdim=True)
        directions = samples / torch.where(lengths > least, lengths + self.eps, math.inf)
        # the cosine moved from [-1, 1] to [0, 1], so that it can be a probability; rounding may exceed that
        kernel = ((gram_matrix(directions) + 1) / 2).clamp(min=0)
        return kernel / kernel.sum(1, keepdim=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CC:
    """Squared error between the correlations of all pairs under a Gaussian kernel (correlation congruence).

    Dimensionless, mean over batch**2 pairs of samples scaled to length 1. The kernel exp(-gamma ‖x - y‖²) is
    approximated by its Taylor series around a cosine of 0, up to `order`.

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
        """Return the error, minimal (0) if all correlations are equal."""
        require_sides(student, target, self)
        with without_autocast(student):
            least = least_norm(student)
            student, target = (self.correlations(flatten_samples(side), least=least) for side in (student, target))
            return F.mse_loss(student, target)

    def correlations(self, samples: Tensor, *, least: float = MIN_NORM) -> Tensor:
        """Return the correlation of each pair, (batch, batch), from vectors (batch, numbers).

        least: the length up to which vectors count as 0.
        """
        cosines = gram_matrix(unit_vectors(samples, least=least))
        # for unit vectors ‖x - y‖² = 2 - 2 cos, so exp(-gamma ‖x - y‖²) = exp(-2 gamma) exp(2 gamma cos)
        two_gamma = 2 * self.gamma
        terms = [two_gamma**power / math.factorial(power) * cosines**power for power in range(self.order + 1)]
        return math.exp(-two_gamma) * torch.stack(terms).sum(0)


@dataclass(frozen=True, slots=True)
class AdjacentCC:
    """Products of the absolute errors of successive samples, the loss that RepDistiller and SemCKD call CC.

    It differs from the paper's loss, and depends on the order of the batch. In squared units of the feature, summed
    over the numbers of a sample, mean over the batch - 1 pairs.

    Formula: 1/(N - 1) · Σ d_i · d_(i+1), with d = abs(s - t)
    Shapes: features (N, C), (N, C, L), (N, C, H, W); as many numbers on both sides
    Source: public code: RepDistiller, distiller_zoo/CC.py
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the mean product, minimal (0) if student and teacher are equal."""
        require_sides(student, target, self)
        if student[0].numel() != target[0].numel():
            require_same_features(student, target, self)
        errors = (flatten_samples(student) - flatten_samples(target)).abs()
        return (errors[1:] * errors[:-1]).sum() / max(len(errors) - 1, 1)


def _relative(distances: Tensor, least: float) -> Tensor:
    """Return distances divided by the mean of those above 0, mu of the paper's sec. 3.2.1."""
    count = (distances > 0).sum().clamp(min=1)
    mean = distances.sum() / count
    return distances / torch.where(mean > least, mean, 1)


def _angles(samples: Tensor, distances: Tensor, *, least: float) -> Tensor:
    """Return the cosine at sample i between the directions to j and k, (batch, batch, batch), or 0 if undefined.

    least: the distance up to which samples coincide.
    """
    # inner products instead of difference vectors, which would take (batch, batch, numbers); centring the samples
    # keeps the precision of the differences of products below
    inner = gram_matrix(samples - samples.mean(0))
    squared_norms = inner.diagonal()
    # (x_j - x_i) · (x_k - x_i) = x_j·x_k - x_i·x_j - x_i·x_k + x_i·x_i, indexed [i, j, k]
    products = inner[None] - inner[:, :, None] - inner[:, None, :] + squared_norms[:, None, None]
    lengths = distances[:, :, None] * distances[:, None, :]
    # No angle if two samples coincide, up to the rounding of the products; their quotient would be noise, with a
    # gradient that overflows. The inner mask keeps the gradient finite. NaN is not masked, so it stays visible.
    rounding = max(8 * torch.finfo(inner.dtype).eps, least) * squared_norms.detach().amax()
    undefined = lengths.detach() <= rounding.clamp(min=least**2)
    return (products / lengths.masked_fill(undefined, 1)).masked_fill(undefined, 0).clamp(-1, 1)
