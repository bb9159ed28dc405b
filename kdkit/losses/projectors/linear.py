"""Projectors that apply one map of channels at every position, and the adaptation of positions for all projectors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.projectors.layers import BatchNorm, Pointwise
from kdkit.losses.projectors.resizing import can_rearrange, rearrange_tokens, resize
from kdkit.losses.validation import validate_count

# The positions of the target in a batch, if they differ from batch to batch, as in padded texts.
Positions = tuple[int, ...] | None


class Projector(nn.Module):
    """A trained linear map over channels after a resize: (batch, channels, ...) -> the shape of the target.

    input_shape, target_shape: (batch, channels, *positions), with the same number of dimensions, up to three of them
    positions. Also supported: a target (batch, channels), with averaged positions; tokens for a map with as many
    positions in its aspect ratio, and a map for tokens. Positions grow by interpolation and shrink by average pooling.
    Raises RecipeError for other shapes.
    """

    def __init__(self, input_shape: torch.Size, target_shape: torch.Size) -> None:
        super().__init__()
        self.positions = target_positions(input_shape, target_shape)
        self.channels = Pointwise(input_shape[1], target_shape[1])

    def forward(self, features: Tensor, positions: Positions = None) -> Tensor:
        """Return the projected features, (batch, target channels, *positions); positions default to the target's."""
        # first, so that fewer positions are mapped if they shrink
        features = fit_positions(features, self.positions if positions is None else positions)
        mapped: Tensor = self.channels(features)
        return mapped


class MLP(nn.Module):
    """Two maps over channels with batch norm and ReLU between them.

    input_shape, target_shape: as in Projector. width: the hidden channels, by default those of the wider side. Raises
    RecipeError for shapes that do not fit.
    """

    def __init__(self, input_shape: torch.Size, target_shape: torch.Size, *, width: int | None = None) -> None:
        super().__init__()
        self.positions = target_positions(input_shape, target_shape)
        validate_count("the width of a projector", width, optional=True)
        width = width or max(input_shape[1], target_shape[1])
        self.first = Pointwise(input_shape[1], width, bias=False)
        self.norm = BatchNorm(width)
        self.second = Pointwise(width, target_shape[1])

    def forward(self, features: Tensor, positions: Positions = None) -> Tensor:
        """Return the projected features, (batch, target channels, *positions); positions default to the target's."""
        features = fit_positions(features, self.positions if positions is None else positions)
        hidden: Tensor = self.norm(self.first(features))
        mapped: Tensor = self.second(hidden.relu())
        return mapped


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


def fit_positions(features: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Return the features rearranged and resized to these positions."""
    return resize(rearrange_tokens(features, positions), positions)


def target_positions(input_shape: torch.Size, target_shape: torch.Size) -> tuple[int, ...]:
    """Return the positions of the target shape. Raises RecipeError if the input cannot be converted to them."""
    supported = 2 <= len(input_shape) <= 5 and 2 <= len(target_shape) <= 5
    if not supported or not can_rearrange(tuple(input_shape[2:]), tuple(target_shape[2:])):
        has_tokens = supported and 3 in (len(input_shape), len(target_shape))
        advice = (
            "; leave extra tokens, such as a class token, out of the tap: Tap(layer, element=lambda tokens: "
            "tokens[:, 1:], channels_last=True), or average a map over one of its dimensions, such as the frequencies "
            "of a spectrogram: Tap(layer, element=lambda maps: maps.mean(2))"
        )
        raise RecipeError(
            f"a projector maps (batch, channels, ...) to as many dimensions or to (batch, channels), and tokens to a "
            f"map of as many positions; got {tuple(input_shape)} for {tuple(target_shape)}"
            + (advice if has_tokens else "")
        )
    return tuple(target_shape[2:])
