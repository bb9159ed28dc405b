"""Fuse the features of a deeper layer into those of a shallower one, by attention over positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.projectors.layers import BatchNorm, Pointwise, convolution, validate_width
from kdkit.losses.projectors.linear import fitted, positions_of


class Fusion(nn.Module):
    """Attention-based fusion of ReviewKD: mix a layer with what the deeper ones left, and map it to the target.

    given, wanted: shapes as those of Projector. width: channels in which layers are mixed, the same for all of them.
    first: whether this is the deepest layer, which has nothing to be mixed with. Chen et al. 2021, "Distilling
    Knowledge via Knowledge Review", sec. 3.3. Raises RecipeError for shapes that cannot meet.
    """

    def __init__(self, given: torch.Size, wanted: torch.Size, *, width: int, first: bool = False) -> None:
        super().__init__()
        self.positions = positions_of(given, wanted)
        validate_width(width)
        self.narrow = Pointwise(given[1], width, bias=False)
        self.narrow_norm = BatchNorm(width)
        self.attention = None if first else Pointwise(2 * width, 2)
        self.widen = convolution(len(self.positions), (width, wanted[1]), 3, padding=1, bias=False)
        self.widen_norm = BatchNorm(wanted[1])

    def forward(self, features: Tensor, deeper: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what meets the target, (batch, wanted channels, *positions), and what is left, of `width` channels."""
        mixed: Tensor = self.narrow_norm(self.narrow(features))
        if self.attention is not None and deeper is not None:
            deeper = grown(deeper, mixed)
            shares: Tensor = self.attention(torch.cat([mixed, deeper], 1)).sigmoid()
            mixed = mixed * shares[:, :1] + deeper * shares[:, 1:]
        if mixed.ndim == len(self.positions) + 2 and tuple(mixed.shape[2:]) != self.positions:
            mixed = F.interpolate(mixed, self.positions, mode="nearest")
        mixed = fitted(mixed, self.positions)
        return self.widen_norm(self.widen(mixed)), mixed


def grown(deeper: Tensor, like: Tensor) -> Tensor:
    """Return the deeper features at the positions of `like`: the nearest, and one vector everywhere alike."""
    positions = like.shape[2:]
    if deeper.ndim == 2:
        return deeper.reshape(*deeper.shape, *(1 for _ in positions)).expand(*deeper.shape, *positions)
    if tuple(deeper.shape[2:]) == tuple(positions):
        return deeper
    if deeper.ndim != like.ndim:
        return fitted(deeper, tuple(positions))
    return F.interpolate(deeper, tuple(positions), mode="nearest")
