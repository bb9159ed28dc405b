"""Losses on the relations between the samples of a batch, of features of any two shapes or of outputs (SKD).

Each sample is flattened to one vector. The relations are those of the (micro-)batch of a step, computed in float32 or
better, under autocast too. A batch of one sample has no relations: their loss is constant and its gradient 0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.losses.features import require_pairs, require_same_features
from kdkit.losses.logits import kl_sum
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
from kdkit.losses.sides import TensorOrTuple, as_tuple
from kdkit.losses.validation import (
    require_same_outputs,
    require_sides,
    validate_above_zero,
    validate_count,
    validate_switches,
    validate_temperature,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SKD:
    """Soft targets, and a Mahalanobis distance between the cosines of a sample to all others (streamlined KD).

    instance weighs the divergence, in nats, mean over the batch, times temperature**2 if t_squared; direction weighs
    the distance, dimensionless, mean over the batch. The distance is the length of the rows of D, in units of the
    covariance of its columns over the (micro-)batch plus `tikhonov`; gradients flow through the covariance too.

    This is the form of the paper. The authors' code also multiplies the divergence by temperature**2, leaves out
    samples on which the teacher is surer than the median, divides the cosines by the number of classes, and halves the
    distance. Both torchdistill and the authors take the square root of squared distances, whose gradient is infinite
    for a row of D that is 0, and divide by samples - 1; here both are finite, even for one sample. The default
    temperature and tikhonov are those of the authors' code.

    Formula: instance/N · Σ p log(p / q) + direction/N · Σ_i √(D_i (cov D + tikhonov I)⁻¹ D_iᵀ), with p = softmax(t /
        T), q = softmax(s / T), D = G(s) - G(t) and G the cosines between the logits of all samples
    Shapes: logits (N, C)
    Source: public code: torchdistill 1.1.5, SKDInstanceLoss and SKDDirectionLoss; Jeong et al. 2026, "Streamlined
        Knowledge Distillation", CVPR, eq. 1 and 3 to 8
    """

    temperature: float = 4.0
    tikhonov: float = 0.1
    instance: float = 1.0
    direction: float = 1.0
    t_squared: bool = False

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_above_zero("tikhonov", self.tikhonov)
        validate_weights(instance=self.instance, direction=self.direction)
        validate_switches(t_squared=self.t_squared)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum, minimal (0) if the logits are equal."""
        require_same_outputs(student, target, self)
        with without_autocast(student):
            least = least_norm(student)
            student, target = upcast_half(student), upcast_half(target)
            loss = student.new_zeros(())
            if self.instance:
                student_log, target_log = ((side / self.temperature).log_softmax(1) for side in (student, target))
                scale = self.temperature**2 if self.t_squared else 1.0
                loss = self.instance * scale * kl_sum(target_log, student_log) / len(student)
            if self.direction:
                loss = loss + self.direction * self.distances(student, target, least).mean()
        return loss

    def distances(self, student: Tensor, target: Tensor, least: float) -> Tensor:
        """Return the Mahalanobis distance of each row of differences between cosines, (batch,).

        least: the norm up to which logits count as 0.
        """
        student_cosines, target_cosines = (gram_matrix(unit_vectors(side, least=least)) for side in (student, target))
        difference = student_cosines - target_cosines  # (batch, batch)
        centred = difference - difference.mean(0)
        covariance = centred.T @ centred / max(len(difference) - 1, 1)
        identity = torch.eye(len(difference), dtype=difference.dtype, device=difference.device)
        # cholesky_ex does not wait for a GPU to report an error; tikhonov makes the matrix positive definite
        factor, _ = torch.linalg.cholesky_ex(covariance + self.tikhonov * identity)
        # D_i (L Lᵀ)⁻¹ D_iᵀ = ‖L⁻¹ D_iᵀ‖²; the gradient of a norm of 0 is 0, and that of √ would be infinite
        whitened = torch.linalg.solve_triangular(factor, difference.T, upper=False)
        distances: Tensor = torch.linalg.vector_norm(whitened, dim=0)
        return distances


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
