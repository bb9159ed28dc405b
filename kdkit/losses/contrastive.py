"""Losses that tell a sample from others by what a student and a teacher remember of them (CRD)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.features import Shapes, direction, full, one, without_autocast
from kdkit.losses.memory_bank import Rows, other_rows, rows_of_other_classes
from kdkit.losses.projectors.resizing import resize
from kdkit.losses.validation import (
    one_class_each,
    validate_above_zero,
    validate_choice,
    validate_count,
    validate_share,
    validate_temperature,
)
from kdkit.utils.collectives import all_gather, all_reduce_mean
from kdkit.utils.memory import require

Against = Literal["auto", "classes", "samples"]

_EPS = 1e-7
_MEGABYTE = 2**20


class CRD(nn.Module):
    """Contrast of a sample, as one net sees it, with itself and others, as the other net remembers them (CRD).

    In nats, summed over one positive and `negatives`, mean over the batch, summed over both nets; positions are
    averaged. Features are embedded by a trained map to `width` (None: as they are) and normalised. The memories hold a
    vector of every training sample, by its id, as a mean that keeps the share `momentum` of what it held; `samples` is
    how many, by default as many as the data trains on, and when more come the newest take the oldest's place. Negatives
    are samples of other "classes", as in the paper, those not yet seen included, or any other "samples"; "auto" takes
    classes where each sample has one. Which they are is a function of seed, sample and how often the loss was asked in
    training. The two normalisers are estimated on the first batch. All of this is saved with the run. memory_limit: in
    MB, of both memories and of the copy that a step makes of them; by default what the teacher's device and the machine
    have left. The other values are those of the authors' code.

    Formula: -1/N · Σ (log(e_0 / (e_0 + c)) + Σ_k log(c / (e_k + c))) of both nets, with e_k = exp(x · m_k / T) / Z for
        the memory m_0 of the sample and m_k of others, and c = negatives / samples
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Tian et al. 2020, "Contrastive Representation Distillation", arXiv:1910.10699
    """

    memories: Tensor
    log_normalisers: Tensor
    asked: Tensor
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
        self.needs = frozenset({"hard_labels"} if against == "classes" else ())
        self.embeddings = nn.ModuleList()
        self.rows = Rows(0)
        self.register_buffer("memories", torch.zeros(2, 0, 0))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("log_normalisers", torch.full((2,), math.inf))
        self.register_buffer("asked", torch.zeros((), dtype=torch.int64))

    def build(self, student: Shapes, target: Shapes, facts: BuildContext, teacher: nn.Module | None) -> None:
        """Make the embeddings and empty memories. Raises RecipeError where these would be too large."""
        ours, theirs = one(student, self)[1], one(target, self)[1]
        samples = self.samples or facts.samples
        if samples is None:
            raise RecipeError("CRD remembers every sample, but the data does not say how many there are; CRD(samples=)")
        if not facts.ids:
            raise RecipeError("CRD remembers samples by their ids, but the data has none")
        if self.width is None and ours != theirs:
            raise RecipeError(
                f"features of {ours} and {theirs} channels cannot be contrasted as they are; CRD(width=128) embeds both"
            )
        width = self.width or ours
        self.memories = torch.zeros(2, 0, 0)  # of an earlier build, which would count as memory that is taken
        self._require_memory(samples, width, teacher)
        self.embeddings = nn.ModuleList(
            nn.Identity() if self.width is None else nn.Linear(given, width) for given in (ours, theirs)
        )
        self.rows = Rows(samples)
        run_trials = math.sqrt(3 / width)  # uniform within it has a length of about 1
        self.memories = torch.empty(2, samples, width).uniform_(-run_trials, run_trials)
        self.log_normalisers = torch.full((2,), math.inf)
        self.asked = torch.randint(2**40, ())  # counts from the run's seed
        self.by_class = self.against == "classes" or (self.against == "auto" and facts.task == "multiclass")
        self.classes = torch.full((samples,), -1)

    def forward(self, student: Tensor, target: Tensor, *, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the contrast, lower the better a sample is told from others; remember the batch if in training."""
        everybody = all_gather(ids) if self.training else ids
        rows = self.rows(everybody, remember=self.training)
        rows = rows if everybody is ids else self.rows(ids, remember=False)
        loss = self.contrast(student, target, torch.cat([rows[:, None], self._negatives(rows, student, labels)], 1))
        if self.training:
            self.asked += 1
        return loss

    def contrast(self, student: Tensor, target: Tensor, rows: Tensor) -> Tensor:
        """Return the contrast with these rows of the memories, (batch, 1 + negatives), the sample's own row first."""
        ours, theirs = (
            direction(full(embed(resize(each, ()))))
            for embed, each in zip(self.embeddings, (student, target), strict=True)
        )
        loss = self._told(0, ours, self.memories[1], rows) + self._told(1, theirs, self.memories[0], rows)
        if self.training:
            with torch.no_grad():
                self._remember(torch.stack([ours, theirs]), rows[:, 0])
        return loss

    def _require_memory(self, samples: int, width: int, teacher: nn.Module | None) -> None:
        limit = None if self.memory_limit is None else int(self.memory_limit * _MEGABYTE)
        home = next((each.device for each in (teacher or nn.Identity()).parameters()), torch.device("cpu"))
        for device in dict.fromkeys((torch.device("cpu"), home)):  # made in the one, moved to the other
            require(
                2 * 2 * 4 * samples * width,
                f"CRD(width={width}) for {samples} samples, with the copy of its memories that a step makes,",
                device,
                limit=limit,
                remedy="embed in a smaller width, remember fewer with CRD(samples=), or raise a memory_limit of yours",
            )

    def _negatives(self, rows: Tensor, student: Tensor, labels: Tensor) -> Tensor:
        if not self.by_class:
            return other_rows(rows, len(self.classes), self.negatives, self.asked)
        labels = one_class_each(labels, student, self)
        if not self.training:
            classes = self.classes.index_put((rows,), labels)
        else:
            classes = self.classes.index_put((all_gather(rows),), all_gather(labels))
            self.classes.copy_(classes)
        return rows_of_other_classes(rows, classes, self.negatives, self.asked)

    def _told(self, which: int, vectors: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
        """Return how well vectors tell their own row of the other net's memory from the rest, less being better."""
        with without_autocast(vectors):
            # a copy, since the memory changes before the backward pass; all products cost less than gathered rows
            scores = (vectors @ memory.clone().to(vectors.dtype).T).gather(1, rows) / self.temperature
        with torch.no_grad():
            first = scores.logsumexp((0, 1)) - math.log(scores.numel()) + math.log(len(memory))
            known = self.log_normalisers[which]
            normaliser = torch.where(known.isinf(), first.to(known.dtype), known)
            if self.training:
                normaliser = all_reduce_mean(normaliser)
                self.log_normalisers[which] = normaliser
        share = scores - normaliser.to(scores.dtype)
        noise = (rows.shape[1] - 1) / len(memory)
        total = torch.logaddexp(share, share.new_tensor(math.log(noise + _EPS)))
        positives = (share[:, 0] - total[:, 0]).sum()
        negatives = (math.log(noise) - total[:, 1:]).sum()
        return -(positives + negatives) / len(rows)

    def _remember(self, vectors: Tensor, rows: Tensor) -> None:
        """Mix vectors (2, batch, width) into their rows of both memories, on every rank those of all of them."""
        vectors, rows = all_gather(vectors.transpose(0, 1)).transpose(0, 1), all_gather(rows)
        kept = self.memories[:, rows]
        mixed = direction(self.momentum * kept + (1 - self.momentum) * vectors.to(kept.dtype), dim=2)
        self.memories[:, rows] = mixed
