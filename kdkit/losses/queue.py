"""A label-free loss on similarities to a queue of teacher features, and between the positions of a sample."""

import torch
from torch import Tensor, nn

from kdkit.losses.base import BuildContext
from kdkit.losses.features import require_positions, require_same_channels, single_tap_shape
from kdkit.losses.logits import kl_sum
from kdkit.losses.numerics import cast_for, least_norm, unit_vectors, upcast_half, without_autocast
from kdkit.losses.projectors.layers import Pointwise
from kdkit.losses.projectors.linear import fit_positions, target_positions
from kdkit.losses.projectors.resizing import resize
from kdkit.losses.sides import Shapes
from kdkit.losses.validation import (
    require_built,
    require_sides,
    validate_at_least_zero,
    validate_count,
    validate_temperature,
)
from kdkit.utils.collectives import all_gather

_LARGEST_QUEUE = 8192  # as in the public code for large datasets


class QueueKL(nn.Module):
    """Divergence between similarities to a queue of teacher features, and between those of a sample's positions.

    In nats. The first term is a mean over the batch: a softmax over the cosines between the pooled features of a sample
    and those of the teacher for the last `size` samples, including the current batch. The second, weighed by `local`,
    is a mean over samples and positions: a softmax over the cosines between the positions of a sample; it is left out
    for features without positions, or if local is 0. It needs no labels. Each term has its own trained map from the
    student's to the teacher's channels, which is discarded after training. size: by default half the number of training
    samples, at most 8192. The queue is saved with the run, and holds the samples of all processes.

    The public code keeps zeros in a queue that is not full yet, each with a cosine of 0, and one queue per process.

    Formula: 1/N · Σ KL(p(t) ‖ p(g(s))) + local/(N P) · Σ KL(r(t) ‖ r(h(s))), with p(x) = softmax(cos(x, queue) /
        temperature), r(x) = softmax(cos(x_i, x) / local_temperature) of each of P positions i, and g and h maps
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: public code: lightly-train, DistillationV3Loss
    """

    accepts_no_rows = True  # each rank takes part in updating the queue

    queue: Tensor
    stored: Tensor

    def __init__(
        self, *, size: int | None = None, temperature: float = 0.07, local: float = 1.0, local_temperature: float = 0.07
    ) -> None:
        super().__init__()
        validate_count("size", size, optional=True)
        validate_temperature(temperature)
        validate_at_least_zero("local", local)
        validate_temperature(local_temperature)
        self.size, self.temperature, self.local, self.local_temperature = size, temperature, local, local_temperature
        self.positions: tuple[int, ...] = ()
        self.pooled_map: nn.Module = nn.Identity()
        self.local_map: nn.Module = nn.Identity()
        # (size, channels) unit vectors, the latest first; the first `stored` are in use
        self.register_buffer("queue", torch.zeros(0, 0))
        self.register_buffer("stored", torch.zeros((), dtype=torch.int64))

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Create the maps and an empty queue. Raises RecipeError if the shapes do not fit."""
        student_shape, target_shape = single_tap_shape(student, self), single_tap_shape(target, self)
        self.positions = target_positions(student_shape, target_shape)
        half = _LARGEST_QUEUE if context.samples is None else context.samples // 2
        size = self.size or min(max(half, 1), _LARGEST_QUEUE)
        channels = (student_shape[1], target_shape[1])
        self.pooled_map = Pointwise(*channels)
        self.local_map = Pointwise(*channels) if self.positions and self.local else nn.Identity()
        self.queue, self.stored = torch.zeros(size, target_shape[1]), torch.zeros((), dtype=torch.int64)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if all similarities are equal; in training mode, update the queue."""
        require_sides(student, target, self)
        require_built(len(self.queue), self)
        student = cast_for(self.pooled_map, student)
        pooled = self.pooled_map(resize(student, ()))
        with without_autocast(student):
            student_vectors, target_vectors = (
                unit_vectors(upcast_half(side), least=least_norm(side)) for side in (pooled, resize(target, ()))
            )
            require_same_channels(student_vectors, target_vectors, self)
            queue, in_use = self._entries(target_vectors.detach())
            similarities = [
                (side @ queue.to(side.dtype).T) / self.temperature for side in (student_vectors, target_vectors)
            ]
            # A finite number instead of -inf, because 0 * (-inf + inf) is NaN in the divergence.
            least = torch.finfo(torch.float32).min / 2
            student_log, target_log = (side.where(in_use, least).log_softmax(1) for side in similarities)
            loss = kl_sum(target_log, student_log) / max(1, len(student))
        if self.local and self.positions:
            positions = tuple(require_positions(target, self).shape[2:])
            local = fit_positions(self.local_map(student), positions)
            student_log, target_log = self._self_similarities(local), self._self_similarities(target)
            loss = loss + self.local * kl_sum(target_log, student_log) / max(1, student_log[..., 0].numel())
        return loss

    def _entries(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queue with these vectors at its front, (size, channels), and which of its rows are in use."""
        # in training, each rank adds the vectors of all ranks, so that their queues stay equal
        latest = all_gather(vectors) if self.training else vectors
        size = len(self.queue)
        entries = torch.cat([latest.to(self.queue.dtype), self.queue])[:size]
        stored = (self.stored + len(latest)).clamp(max=size)
        if self.training:
            self.queue.copy_(entries)
            self.stored.copy_(stored)
        return entries.to(vectors.dtype), torch.arange(size, device=entries.device) < stored

    def _self_similarities(self, features: Tensor) -> Tensor:
        """Return the log softmax of the cosines between positions, (batch, positions, positions)."""
        with without_autocast(features):
            # (batch, channels, positions)
            vectors = unit_vectors(upcast_half(features).flatten(2), least=least_norm(features))
            return ((vectors.mT @ vectors) / self.local_temperature).log_softmax(2)
