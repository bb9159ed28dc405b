"""Projectors that map the channels of every position alike."""

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.losses.projectors.layers import BatchNorm, Pointwise, validate_width
from kdkit.losses.projectors.resizing import arrange, arrangeable, resize


class Projector(nn.Module):
    """A trained linear map over channels, then a resize: (batch, channels, ...) -> the shape of the target.

    given, wanted: (batch, channels, *positions), with up to three dimensions of positions, as many in both; or a
    wanted (batch, channels), for which positions are averaged; or tokens for a map of as many positions in its
    aspect, and a map for tokens. Positions grow by interpolation and shrink by average pooling. Raises RecipeError
    for other shapes.
    """

    def __init__(self, given: torch.Size, wanted: torch.Size) -> None:
        super().__init__()
        self.positions = positions_of(given, wanted)
        self.channels = nn.Linear(given[1], wanted[1])

    def forward(self, features: Tensor) -> Tensor:
        """Return (batch, wanted channels, *wanted positions)."""
        features = fitted(features, self.positions)  # first, so that less is mapped when positions shrink
        mapped: Tensor = self.channels(features.movedim(1, -1))
        return mapped.movedim(-1, 1).contiguous()  # else a compiled backward pass mistakes the gradient's strides


class MLP(nn.Module):
    """Two maps over channels with batch norm and ReLU between, as wide as the wider side by default.

    given, wanted: shapes as those of Projector. Raises RecipeError for others.
    """

    def __init__(self, given: torch.Size, wanted: torch.Size, *, width: int | None = None) -> None:
        super().__init__()
        self.positions = positions_of(given, wanted)
        validate_width(width)
        width = width or max(given[1], wanted[1])
        self.first = Pointwise(given[1], width, bias=False)
        self.norm = BatchNorm(width)
        self.second = Pointwise(width, wanted[1])

    def forward(self, features: Tensor) -> Tensor:
        """Return (batch, wanted channels, *wanted positions)."""
        hidden: Tensor = self.norm(self.first(fitted(features, self.positions)))
        mapped: Tensor = self.second(hidden.relu())
        return mapped


def fitted(features: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Return the features laid out and resized to these positions."""
    return resize(arrange(features, positions), positions)


def positions_of(given: torch.Size, wanted: torch.Size) -> tuple[int, ...]:
    """Return the positions wanted. Raises RecipeError where what is given cannot be brought to them."""
    dimensions = 2 <= len(given) <= 5 and 2 <= len(wanted) <= 5
    if not dimensions or not arrangeable(tuple(given[2:]), tuple(wanted[2:])):
        raise RecipeError(
            f"a projector maps (batch, channels, ...) to as many dimensions or to (batch, channels), and tokens to a "
            f"map of as many positions; got {tuple(given)} for {tuple(wanted)}"
        )
    return tuple(wanted[2:])
