"""A loss on the singular vectors of feature maps, and their change between successive layers (KDSVD)."""

from itertools import pairwise

import torch
from torch import Tensor

from kdkit.losses.channel_relations import SuccessiveTaps
from kdkit.losses.numerics import unit_vectors, upcast_half
from kdkit.losses.projectors.factory import ProjectorMode
from kdkit.losses.validation import validate_above_zero, validate_count

# Of the student, so many vectors more than of the teacher are candidates for an alignment, as in the authors' code.
_CANDIDATES = 3
# The gradient of a vector grows as 1 / gap between its squared singular value and another one, as shares of their sum.
# Smaller gaps than this are damped: it would be infinite for equal ones.
_LEAST_GAP = 1e-4
# The length up to which a map counts as 0, in any precision: the gradient of the student's features grows as 1 / length
# even if they are fp16 and only their projection is float32.
_LEAST_LENGTH = torch.finfo(torch.float16).tiny


class KDSVD(SuccessiveTaps):
    """Squared error between the relations of the singular vectors of successive layers (KD-SVD).

    Takes at least two taps on each side, in pairs from shallow to deep. The map of a sample, (positions, channels), has
    `vectors` right singular vectors of length 1, those of its largest singular values. Each vector of the teacher is
    compared with the one of the student that is most similar up to its sign, among `vectors` + 3, and both are
    multiplied by the teacher's singular value, as a share of the length of all `vectors` of them. The relation of two
    successive taps is a Gaussian kernel of width `width` between all pairs of their channels. Dimensionless, summed
    over pairs of channels, vectors and pairs of taps, mean over the batch. Positions may differ. projector is as in
    FSP; RepDistiller has none.

    Singular vectors have no sign of their own: here, the numbers of a vector of the teacher have a sum of at least 0;
    in public code the sign is that of the library. The gradient of vectors whose singular values are almost equal is
    damped; there it is infinite for equal ones.

    Formula: 1/N · Σ (k(s'_a, s'_b) - k(t_a, t_b))², with k(x, y)_ij = exp(-(x_i - y_j)² / (2 width²)) for channels i, j
        of the vectors of two successive taps a and b, and s' the aligned ones of the student
    Shapes: features (N, C, L), (N, C, H, W)
    Source: Lee et al. 2018, "Self-supervised Knowledge Distillation Using Singular Value Decomposition",
        arXiv:1807.06819; public code: RepDistiller, distiller_zoo/KDSVD.py
    """

    def __init__(self, *, vectors: int = 1, width: float = 2.0, projector: ProjectorMode = "auto") -> None:
        super().__init__(projector=projector)
        validate_count("vectors", vectors)
        validate_above_zero("width", width)
        self.vectors, self.width = vectors, width

    def compare(self, student: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
        """Return the error, minimal (0) if the vectors of all taps are equal up to their signs."""
        pairs = [self.aligned(*pair) for pair in zip(student, target, strict=True)]
        errors = [
            (self.kernel(ours, ours_next) - self.kernel(theirs, theirs_next)).square().sum()
            for (ours, theirs), (ours_next, theirs_next) in pairwise(pairs)
        ]
        return torch.stack(errors).sum() / len(student[0])

    def aligned(self, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of a tap of both sides, (batch, channels, vectors), times the teacher's values."""
        ours, _ = singular_vectors(student, self.vectors + _CANDIDATES)
        theirs, values = singular_vectors(target, self.vectors)
        theirs = theirs * torch.where(theirs.sum(1, keepdim=True) < 0, -1.0, 1.0)
        cosines = ours.mT @ theirs.to(ours.dtype)  # (batch, candidates, vectors)
        closest = cosines.detach().abs().argmax(1, keepdim=True)
        signs = torch.where(cosines.detach().gather(1, closest) < 0, -1.0, 1.0)
        ours = ours.gather(2, closest.expand(-1, ours.shape[1], -1)) * signs
        weights = unit_vectors(values)[:, None]
        return ours * weights, theirs * weights

    def kernel(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the relation of two layers, (batch, channels of the first, channels of the second, vectors)."""
        return (-(first[:, :, None] - second[:, None]).square() / (2 * self.width**2)).exp()


def singular_vectors(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the right singular vectors, (batch, channels, count), and values, (batch, count), of maps.

    features: (batch, channels, *positions). The largest values come first, as shares of the length of the map. There
    are fewer if there are fewer channels or positions. A vector without a value, such as of zeros, is 0.
    """
    maps = upcast_half(features).flatten(2)
    maps = unit_vectors(maps.flatten(1), least=_LEAST_LENGTH).reshape(maps.shape)
    # The smaller of the two products has the same eigenvalues, the squared singular values.
    of_positions = maps.shape[2] < maps.shape[1]
    vectors, squares = _eigenvectors(maps.mT @ maps if of_positions else maps @ maps.mT)
    vectors, squares = vectors[..., :count], squares[..., :count]
    if of_positions:
        vectors = unit_vectors(maps @ vectors)
    is_unused = squares <= torch.finfo(squares.dtype).eps
    return vectors.masked_fill(is_unused[:, None], 0), squares.masked_fill(is_unused, 0).sqrt()


def _eigenvectors(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvectors of symmetric matrices, (batch, size, size), in columns, and their eigenvalues.

    The largest eigenvalues come first. Eigenvalues have no gradient, and that of the eigenvectors is finite.
    """
    # the decomposition raises for NaN, which must stay visible
    is_finite = matrices.detach().isfinite().all(2, keepdim=True).all(1, keepdim=True)
    values, basis = torch.linalg.eigh(matrices.detach().where(is_finite, 0))
    values, basis = values.where(is_finite[..., 0], torch.nan).flip(1), basis.flip(2)
    # First-order perturbation theory: eigenvector j turns towards i by v_i · dM v_j / (value j - value i).
    gaps = values[:, None] - values[:, :, None]
    turns = (basis.mT @ (matrices - matrices.detach()) @ basis) * gaps / (gaps.square() + _LEAST_GAP**2)
    return basis + basis @ turns, values
