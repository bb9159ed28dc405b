"""A loss on probabilities, and on the directions of outputs relative to those of other samples (SKD)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.losses.features import gram_matrix, least_norm, unit_vectors, upcast_half, without_autocast
from kdkit.losses.logits import kl_sum
from kdkit.losses.validation import (
    require_same_outputs,
    validate_above_zero,
    validate_switches,
    validate_temperature,
    validate_weights,
)


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
