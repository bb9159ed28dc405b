"""Losses that let a student find by itself which of a teacher's layers to learn from (SemCKD)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.conditions import validate_count, validate_temperature
from kdkit.losses.loss import Facts
from kdkit.losses.projected import Shapes, Sided, direction, full, several
from kdkit.losses.samples import without_autocast
from kdkit.projectors import Bottleneck, meet
from kdkit.projectors.kinds import When, validate_when

_BATCH = 64  # where neither the loss nor the training says


class SemCKD(nn.Module):
    """Squared error between every student layer and every teacher layer, weighted by how alike they see the batch.

    Any number of taps on either side. In squared units of the feature, mean over the entries of a pair, weighted sum
    over teacher layers, mean over the batch and student layers. The weights are an attention over the teacher's layers,
    between embeddings of `width` of each sample's similarities to the others of its batch (under accumulation, of the
    micro-batch), at most batch_size of them, by default as many as the training's batch holds; a larger one is embedded
    in parts. Where positions differ, the larger are averaged to the smaller. projector "always" makes one for every
    pair, "auto" where channels differ, "never" refuses those. The temperature of the attention is that of the SimKD
    authors' code; the first code has none, as at 1.

    Formula: 1/(N S) · Σ w mean (g(s) - t)², with S student layers and w = softmax(query · key / T) over teacher layers
    Shapes: features (N, C), (N, C, L), (N, C, H, W)
    Source: Chen et al. 2021, "Cross-Layer Distillation with Semantic Calibration", arXiv:2012.03236
    """

    def __init__(
        self, *, batch_size: int | None = None, width: int = 128, temperature: float = 1.0, projector: When = "always"
    ) -> None:
        super().__init__()
        validate_count("batch_size", batch_size, optional=True)
        validate_count("width", width)
        validate_temperature(temperature)
        validate_when(projector)
        self.batch_size, self.width, self.temperature, self.when = batch_size, width, temperature, projector
        self.others = 0
        self.queries, self.keys = nn.ModuleList(), nn.ModuleList()
        self.projectors = nn.ModuleList()

    def build(self, student: Shapes, target: Shapes, facts: Facts, teacher: nn.Module | None) -> None:
        """Make the embeddings and the projectors of all pairs. Raises RecipeError where shapes cannot meet."""
        self.others = self.batch_size or facts.batch_size or _BATCH
        self.queries = nn.ModuleList(_embedding(self.others, self.width) for _ in student)
        self.keys = nn.ModuleList(_embedding(self.others, self.width) for _ in target)
        self.projectors = nn.ModuleList(self._projector(given, wanted) for given in student for wanted in target)

    def forward(self, student: Sided, target: Sided) -> Tensor:
        """Return the weighted error, least (0) where every projected layer is every layer of the teacher."""
        ours, theirs = several(student), several(target)
        pairs = [meet(features, wanted) for features in ours for wanted in theirs]
        errors = [apart(projector(one), other) for projector, (one, other) in zip(self.projectors, pairs, strict=True)]
        return weighted(torch.stack(errors, 1).reshape(-1, len(ours), len(theirs)), self.attend(ours, theirs))

    def attend(self, student: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
        """Return how much each student layer heeds each teacher layer, (batch, student layers, teacher layers)."""
        queries, keys = (
            torch.stack([self._embedded(each, one) for each, one in zip(embeddings, layers, strict=True)], 1)
            for embeddings, layers in ((self.queries, student), (self.keys, target))
        )
        return (full(queries @ keys.mT) / self.temperature).softmax(2)

    def _embedded(self, embedding: nn.Module, features: Tensor) -> Tensor:
        parts = [self._similarities(part) for part in torch.split(full(features).flatten(1), self.others)]
        return direction(full(embedding(torch.cat(parts))))

    def _similarities(self, features: Tensor) -> Tensor:
        """Return each sample's products with all of its part, filled up with zeros to (samples, others)."""
        with without_autocast(features):
            return F.pad(features @ features.T, (0, self.others - len(features)))

    def _projector(self, given: torch.Size, wanted: torch.Size) -> nn.Module:
        one, other = meet(torch.empty(given, device="meta"), torch.empty(wanted, device="meta"))
        if self.when == "always" or (self.when == "auto" and one.shape[1] != other.shape[1]):
            return Bottleneck(one.shape, other.shape, width=2 * other.shape[1], rectified=False)
        if one.shape[1] != other.shape[1]:
            raise RecipeError(
                f"features of {one.shape[1]} channels cannot meet {other.shape[1]} without a projector; "
                "SemCKD(projector='always') makes one for every pair"
            )
        return nn.Identity()


def apart(student: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of each sample, (batch,), mean over its entries."""
    return (full(student) - full(target)).square().flatten(1).mean(1)


def weighted(errors: Tensor, attention: Tensor) -> Tensor:
    """Return errors weighted by attention, both (batch, student layers, teacher layers), as SemCKD adds them up."""
    return (attention * errors).sum() / (errors.shape[0] * errors.shape[1])


def _embedding(given: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(given, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
