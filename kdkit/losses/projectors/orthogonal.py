"""A projector whose map over channels is orthogonal, so that it cannot learn a representation of its own (VkD)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.projectors.linear import Positions, fit_positions, target_positions


class Orthogonal(nn.Module):
    """A trained map over channels without a bias, whose rows or columns stay orthonormal (VkD).

    input_shape, target_shape: as in Projector. Distances are kept if the target has as many channels or more.
    The map is a product of Householder reflections, each with a trained vector, so that the average of two projectors
    is orthogonal as well. The torch.nn.utils.parametrizations.orthogonal of the authors' code has the signs of the
    columns among the trained numbers and truncates them to integers, so weight decay makes its map 0. Raises
    RecipeError for shapes that do not fit. Source: Miles et al. 2024, "VkD: Improving Knowledge Distillation using
    Orthogonal Projections", arXiv:2403.06213.
    """

    def __init__(self, input_shape: torch.Size, target_shape: torch.Size) -> None:
        super().__init__()
        self.positions = target_positions(input_shape, target_shape)
        self.grows = target_shape[1] >= input_shape[1]
        shape = sorted((input_shape[1], target_shape[1]), reverse=True)  # at least as many rows as columns
        # Reflections of a QR decomposition of random numbers: the map is uniform, up to the signs of its columns.
        reflections, _ = torch.geqrf(torch.randn(shape))
        self.reflections = nn.Parameter(reflections.tril(-1))

    @property
    def weight(self) -> Tensor:
        """The map, (target channels, input channels)."""
        vectors = self.reflections.tril(-1)  # column j is below the diagonal; its entry on the diagonal is 1
        # a reflection along v is 1 - 2 v vᵀ / ‖v‖²
        columns: Tensor = torch.linalg.householder_product(vectors, 2 / (1 + vectors.square().sum(0)))
        return columns if self.grows else columns.mT

    def forward(self, features: Tensor, positions: Positions = None) -> Tensor:
        """Return the projected features, (batch, target channels, *positions); positions default to the target's."""
        features = fit_positions(features, self.positions if positions is None else positions)
        mapped = F.linear(features.movedim(1, -1), self.weight)
        # a compiled backward pass would otherwise assume wrong strides of the gradient
        return mapped.movedim(-1, 1).contiguous()
