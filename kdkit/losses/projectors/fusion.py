"""Fuse the features of a deeper layer into those of a shallower one, by attention over positions (ReviewKD)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.losses.projectors.layers import BatchNorm, Pointwise, convolution, require_dimensions
from kdkit.losses.projectors.linear import Positions, fit_positions, target_positions
from kdkit.losses.validation import validate_count


class Fusion(nn.Module):
    """Attention-based fusion: mix a layer with the fused features of the deeper ones, and map it to the target.

    input_shape, target_shape: as in Projector. width: the channels in which layers are mixed, equal for all of them.
    first: whether this is the deepest layer, which has no deeper features to be mixed with. Raises RecipeError for
    shapes that do not fit. Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review", sec. 3.3.
    """

    def __init__(self, input_shape: torch.Size, target_shape: torch.Size, *, width: int, first: bool = False) -> None:
        super().__init__()
        self.positions = target_positions(input_shape, target_shape)
        validate_count("the width of a projector", width)
        self.narrow = Pointwise(input_shape[1], width, bias=False)
        self.narrow_norm = BatchNorm(width)
        self.attention = None if first else Pointwise(2 * width, 2)
        self.widen = convolution(len(self.positions), (width, target_shape[1]), 3, padding=1, bias=False)
        self.widen_norm = BatchNorm(target_shape[1])

    def forward(
        self, features: Tensor, deeper: Tensor | None = None, positions: Positions = None
    ) -> tuple[Tensor, Tensor]:
        """Return the projected features, (batch, target channels, *positions), and the fused ones, of `width` channels.

        deeper: the fused features of the next deeper layer. positions: by default those of the target shape.
        """
        positions = self.positions if positions is None else positions
        mixed: Tensor = self.narrow_norm(self.narrow(features))
        if self.attention is not None and deeper is not None:
            deeper = _expand_positions(deeper, mixed)
            # two attention maps, (batch, 2, *positions): one for this layer and one for the deeper ones
            attention: Tensor = self.attention(torch.cat([mixed, deeper], 1)).sigmoid()
            mixed = mixed * attention[:, :1] + deeper * attention[:, 1:]
        # the authors' code resizes by the nearest position, other projectors interpolate linearly
        if mixed.ndim == len(positions) + 2 and tuple(mixed.shape[2:]) != positions:
            mixed = F.interpolate(mixed, positions, mode="nearest")
        mixed = fit_positions(mixed, positions)
        require_dimensions(mixed, self.widen)
        return self.widen_norm(self.widen(mixed)), mixed


def _expand_positions(deeper: Tensor, like: Tensor) -> Tensor:
    """Return the deeper features at the positions of `like`, by the nearest position; a vector is repeated."""
    positions = like.shape[2:]
    if deeper.ndim == 2:
        # (batch, channels) -> (batch, channels, 1, ...) -> (batch, channels, *positions)
        return deeper.reshape(*deeper.shape, *(1 for _ in positions)).expand(*deeper.shape, *positions)
    if tuple(deeper.shape[2:]) == tuple(positions):
        return deeper
    if deeper.ndim != like.ndim:
        return fit_positions(deeper, tuple(positions))
    return F.interpolate(deeper, tuple(positions), mode="nearest")
