"""Contrastive losses, against a memory bank of all training samples (CRD) and against the batch (InfoNCE)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.features import ProjectedLoss, single_tap_shape
from kdkit.losses.memory_bank import RowIndex, draw_rows, draw_rows_of_other_classes
from kdkit.losses.numerics import cast_for, least_norm, unit_vectors, upcast_half, without_autocast
from kdkit.losses.projectors.factory import ProjectorKind, ProjectorMode
from kdkit.losses.projectors.layers import Pointwise
from kdkit.losses.projectors.resizing import resize
from kdkit.losses.sides import Shapes
from kdkit.losses.validation import (
    require_built,
    require_class_labels,
    require_sides,
    validate_above_zero,
    validate_choice,
    validate_count,
    validate_share,
    validate_temperature,
)
from kdkit.utils.collectives import all_gather, is_distributed
from kdkit.utils.memory import require

# The samples that negatives are drawn from.
Against = Literal["auto", "classes", "samples"]

_EPS = 1e-7  # as in the authors' code, in the denominator of the critic
_MEGABYTE = 2**20


class CRD(nn.Module):
    """Contrast each net's embedding of a sample with the other net's memories of it and of other samples (CRD).

    In nats, summed over one positive and `negatives`, mean over the batch, summed over both nets. Positions are
    averaged. Features are embedded by a trained map to `width` (None: not embedded) and normalised. The two memories
    hold a vector for every training sample, found by its id: a moving average that keeps the share `momentum` of its
    old value. `samples` is the number of rows, by default the number of training samples; if there are more samples,
    new ones replace the oldest. against "classes" draws negatives among the samples of other classes, as in the paper,
    and those not seen yet; "samples" among all other samples, without labels; "auto" among classes if each sample has
    one. Negatives are a function of the seed, the sample and the number of training steps so far. The two normalisers
    are estimated on the first batch. All of this is saved with the run. memory_limit: in MB, for both memories and the
    copy that a step makes of them; by default the free memory of the teacher's device and of the machine. The other
    defaults are those of the authors' code.

    Formula: -1/N · Σ (log(e_0 / (e_0 + c)) + Σ_k log(c / (e_k + c))) of both nets, with e_k = exp(x · m_k / T) / Z for
        the memory m_0 of the sample and m_k of others, and c = negatives / samples
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Tian et al. 2020, "Contrastive Representation Distillation", arXiv:1910.10699
    """

    accepts_no_rows = True  # each rank takes part in updating the memories

    memories: Tensor
    log_normalisers: Tensor
    steps: Tensor
    classes: Tensor

    def __init__(
        self,
        *,
        width: int | None = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        against: Against = "auto",
        samples: int | None = None,
        memory_limit: float | None = None,
    ) -> None:
        super().__init__()
        validate_temperature(temperature)
        validate_count("width", width, optional=True)
        validate_count("negatives", negatives)
        validate_count("samples", samples, optional=True)
        if memory_limit is not None:
            validate_above_zero("memory_limit", memory_limit)
        validate_choice("against", against, Against)
        validate_share("momentum", momentum, below_one=True)
        self.width, self.negatives, self.temperature, self.momentum = width, negatives, temperature, momentum
        self.samples, self.memory_limit = samples, memory_limit
        self.against: Against = against
        self.by_class = False
        self.requires = frozenset({"hard_labels"} if against == "classes" else ())
        self.extra_kwargs = frozenset({"ids"} if against == "samples" else {"ids", "labels"})
        self.embeddings = nn.ModuleList()
        self.rows = RowIndex(0)
        # Index 0 is the student, 1 the teacher. memories: (2, samples, width). classes: (samples,), -1 if not seen yet.
        self.register_buffer("memories", torch.zeros(2, 0, 0))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("log_normalisers", torch.full((2,), math.inf))  # inf: not estimated yet
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Create the embeddings and random memories. Raises RecipeError if there is too little memory for them."""
        student_channels, target_channels = single_tap_shape(student, self)[1], single_tap_shape(target, self)[1]
        samples = self.samples or context.samples
        if samples is None:
            raise RecipeError(
                "CRD remembers every sample, but the data does not define how many there are; set CRD(samples=)"
            )
        if not context.ids:
            raise RecipeError("CRD remembers samples by their ids, but the data has none")
        batch = min(context.batch_size or 1, context.samples or samples)
        if samples < batch:
            raise RecipeError(f"CRD(samples={samples}) must have a row for each of the {batch} samples of a batch")
        if self.width is None and student_channels != target_channels:
            raise RecipeError(
                f"features of {student_channels} and {target_channels} channels cannot be contrasted as they are; "
                "CRD(width=128) embeds both"
            )
        width = self.width or student_channels
        self.memories = torch.zeros(2, 0, 0)  # frees those of an earlier build before free memory is measured
        self._require_memory(samples, width, teacher)
        self.embeddings = nn.ModuleList(
            nn.Identity() if self.width is None else Pointwise(channels, width)
            for channels in (student_channels, target_channels)
        )
        self.rows = RowIndex(samples)
        bound = math.sqrt(3 / width)  # uniform numbers in [-bound, bound] give vectors of length about 1
        self.memories = torch.empty(2, samples, width).uniform_(-bound, bound)
        self.log_normalisers = torch.full((2,), math.inf)
        self.steps = torch.randint(2**40, ())  # a random start, so that negatives depend on the run's seed
        self.by_class = self.against == "classes" or (self.against == "auto" and context.task == "multiclass")
        self.classes = torch.full((samples,), -1)

    def forward(self, student: Tensor, target: Tensor, *, ids: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the loss, lower if samples are better distinguished; in training mode, update the memories.

        labels: needed if negatives are samples of other classes.
        """
        require_sides(student, target, self)
        require_built(self.memories.numel(), self)
        # in training all ranks assign rows for the ids of all ranks, so that their memories stay equal
        all_ids = all_gather(ids) if self.training else ids
        rows = self.rows(all_ids, remember=self.training)
        rows = rows if all_ids is ids else self.rows(ids, remember=False)
        # (batch, 1 + negatives), the sample's row first
        loss = self.contrast(
            student, target, torch.cat([rows[:, None], self._draw_negatives(rows, student, labels)], 1)
        )
        if self.training:
            self.steps += 1
        return loss

    def contrast(self, student: Tensor, target: Tensor, rows: Tensor) -> Tensor:
        """Return the loss for these rows of the memories, (batch, 1 + negatives), the sample's row first."""
        student, target = (
            unit_vectors(upcast_half(vectors), least=least_norm(vectors))
            for vectors in (
                embedding(cast_for(embedding, resize(features, ())))
                for embedding, features in zip(self.embeddings, (student, target), strict=True)
            )
        )
        # each net's embedding is compared with the memory of the other net
        student_loss = self._contrast_with_memory(0, student, self.memories[1], rows)
        loss = student_loss + self._contrast_with_memory(1, target, self.memories[0], rows)
        if self.training:
            with torch.no_grad():
                self._update_memories(torch.stack([student, target]), rows[:, 0])
        return loss

    def _require_memory(self, samples: int, width: int, teacher: nn.Module | None) -> None:
        limit = None if self.memory_limit is None else int(self.memory_limit * _MEGABYTE)
        parameters = teacher.parameters() if teacher is not None else iter(())
        teacher_device = next((parameter.device for parameter in parameters), torch.device("cpu"))
        # the memories are created on the CPU, then moved to the teacher's device
        for device in dict.fromkeys((torch.device("cpu"), teacher_device)):
            require(
                2 * 2 * 4 * samples * width,  # two memories and their copies, in float32
                f"CRD(width={width}) for {samples} samples, with the copy of its memories that a step makes,",
                device,
                limit=limit,
                remedy="use a smaller width, fewer rows with CRD(samples=), or a higher memory_limit",
            )

    def _draw_negatives(self, rows: Tensor, student: Tensor, labels: Tensor | None) -> Tensor:
        if not self.by_class:
            return draw_rows(rows, len(self.classes), self.negatives, self.steps)
        if labels is None:
            raise RecipeError("CRD contrasts samples of different classes and needs labels; use against='samples'")
        labels = require_class_labels(labels, student, self)
        if not self.training:
            classes = self.classes.index_put((rows,), labels)
        else:
            classes = self.classes.index_put((all_gather(rows),), all_gather(labels))
            self.classes.copy_(classes)
        return draw_rows_of_other_classes(rows, classes, self.negatives, self.steps)

    def _contrast_with_memory(self, net: int, vectors: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
        """Return the loss of one net's vectors against the other net's memory."""
        with without_autocast(vectors):
            # The clone is needed because the memory changes before the backward pass. The product with all rows costs
            # less than gathering (batch, 1 + negatives, width).
            scores = (vectors @ memory.clone().to(vectors.dtype).T).gather(1, rows) / self.temperature
        with torch.no_grad():
            normaliser = self._log_normaliser(net, scores)
        log_e = scores - normaliser.to(scores.dtype)
        # The paper's critic is h = e / (e + c) with c = negatives / samples; all terms are computed as logarithms.
        c = (rows.shape[1] - 1) / len(memory)
        log_denominator = torch.logaddexp(log_e, log_e.new_full((), math.log(c + _EPS)))
        positives = (log_e[:, 0] - log_denominator[:, 0]).sum()  # log h
        negatives = (math.log(c) - log_denominator[:, 1:]).sum()  # log (1 - h)
        return -(positives + negatives) / max(1, len(rows))

    def _log_normaliser(self, net: int, scores: Tensor) -> Tensor:
        """Return the logarithm of Z; in training mode, store it. scores: (batch, 1 + negatives)."""
        stored = self.log_normalisers[net]
        count = scores.numel()
        sums = scores.logsumexp((0, 1), keepdim=True)[0] if count else scores.new_zeros(0)
        if self.training and is_distributed() and stored.isinf():  # over the ranks that have rows
            sums, count = all_gather(sums), int(all_gather(torch.tensor([count], device=sums.device)).sum())
        if not count:
            return stored
        # Z = mean of exp(score) times the number of samples, estimated on the first batch only
        estimate = sums.logsumexp(0) - math.log(count) + math.log(self.memories.shape[1])
        normaliser = torch.where(stored.isinf(), estimate.to(stored.dtype), stored)
        if self.training:
            self.log_normalisers[net] = normaliser
        return normaliser

    def _update_memories(self, vectors: Tensor, rows: Tensor) -> None:
        """Mix vectors (2, batch, width) into their rows of both memories; each rank mixes in those of all ranks."""
        # all_gather concatenates along the first dimension, which must be the batch
        vectors, rows = all_gather(vectors.transpose(0, 1)).transpose(0, 1), all_gather(rows)
        old = self.memories[:, rows]
        mixed = unit_vectors(self.momentum * old + (1 - self.momentum) * vectors.to(old.dtype), dim=2)
        self.memories[:, rows] = mixed


class InfoNCE(ProjectedLoss):
    """Find the teacher's features of each sample among those of the batch, from the student's features (InfoNCE).

    In nats, mean over the batch: a cross-entropy over the cosines with the teacher's features of all samples in the
    (micro-)batch of the same rank. It grows with the logarithm of the batch size, and is 0 without a gradient for a
    batch of one. Positions are averaged. Unlike CRD it needs no ids, memory or labels, but it needs large batches.
    temperature divides the cosines. The features may be of two kinds, such as images and texts in the interactive
    contrastive learning of CLIP-KD, whose code trains a factor for the cosines instead. projector and kind are as in
    Hint.

    Formula: -1/N · Σ_i log(exp(cos(g(s_i), t_i) / T) / Σ_j exp(cos(g(s_i), t_j) / T)), with s and t averaged over
        positions, g a projector if channels differ and j the samples of the batch
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", arXiv:1807.03748;
        Yang et al. 2024, "CLIP-KD: An Empirical Study of CLIP Model Distillation", arXiv:2307.12732
    """

    def __init__(
        self, *, temperature: float = 0.07, projector: ProjectorMode = "auto", kind: ProjectorKind = "linear"
    ) -> None:
        super().__init__(projector=projector, kind=kind)
        validate_temperature(temperature)
        self.temperature = temperature

    def build(
        self, student: Shapes, target: Shapes, context: BuildContext | None = None, teacher: nn.Module | None = None
    ) -> None:
        """Create the projector for the channels. Raises RecipeError if they differ and it is "never"."""
        student_shape, target_shape = (single_tap_shape(shapes, self)[:2] for shapes in (student, target))
        super().build((student_shape,), (target_shape,))

    def project(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the student's features, averaged over positions, in the channels of the target, (batch, channels)."""
        return super().project(resize(student, ()), resize(target, ()))

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy, lower if the teacher's features of a sample are the most similar ones."""
        student_vectors, target_vectors = (
            unit_vectors(upcast_half(side), least=least_norm(side)) for side in (student, resize(target, ()))
        )
        with without_autocast(student):
            cosines = student_vectors @ target_vectors.to(student_vectors.dtype).T  # (batch, batch)
        return F.cross_entropy(cosines / self.temperature, torch.arange(len(cosines), device=cosines.device))
