"""Projectors that convolve over positions, with batch norms between."""

import torch
from torch import Tensor, nn

from kdkit.losses.projectors.layers import BatchNorm, Pointwise, convolution, doubling, validate_width
from kdkit.losses.projectors.linear import fitted, positions_of

LARGEST_KERNEL = 17


class Regressor(nn.Module):
    """The convolutional regressor of FitNets, then batch norm and ReLU: (batch, channels, ...) -> the target's shape.

    given, wanted: shapes as those of Projector. Without padding and with a kernel that is as much longer than 1 as the
    positions are to shrink (Romero et al. 2015, sec. 2.2); where they are to be halved, a kernel of 3 and a stride of
    2; where doubled, a transposed one. Where they are to grow otherwise, or the kernel would be longer than 17, the
    positions are resized first and a kernel of 3 is padded. relu=False leaves the ReLU out, for a target that has
    negative values. Raises RecipeError for shapes that cannot meet.
    """

    def __init__(self, given: torch.Size, wanted: torch.Size, *, relu: bool = True) -> None:
        super().__init__()
        positions = positions_of(given, wanted)
        now, dimensions = tuple(given[2:]), len(positions)
        channels = (given[1], wanted[1])
        pairs = list(zip(now, positions, strict=False))
        kernel = tuple(before - after + 1 for before, after in pairs)
        self.positions: tuple[int, ...] | None = None
        if dimensions and all(before == 2 * after for before, after in pairs):
            self.conv = convolution(dimensions, channels, 3, stride=2, padding=1)
        elif dimensions and all(2 * before == after for before, after in pairs):
            self.conv = doubling(dimensions, channels)
        elif len(now) == dimensions and all(1 <= each <= LARGEST_KERNEL for each in kernel):
            self.conv = convolution(dimensions, channels, kernel)
        else:
            self.positions = positions
            self.conv = convolution(dimensions, channels, 3, padding=1)
        self.norm = BatchNorm(wanted[1])
        self.relu = relu

    def forward(self, features: Tensor) -> Tensor:
        """Return (batch, wanted channels, *wanted positions)."""
        features = features if self.positions is None else fitted(features, self.positions)
        mapped: Tensor = self.norm(self.conv(features))
        return mapped.relu() if self.relu else mapped


class Bottleneck(nn.Module):
    """A map, a convolution of 3 and a map again, each but perhaps the last with batch norm and ReLU.

    given, wanted: shapes as those of Projector. width: of the middle; half the target's channels by default, as in
    SimKD (Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier", arXiv:2203.14001).
    rectified=False gives the last map a bias and neither norm nor ReLU. Raises RecipeError for shapes that cannot meet.
    """

    def __init__(
        self, given: torch.Size, wanted: torch.Size, *, width: int | None = None, rectified: bool = True
    ) -> None:
        super().__init__()
        self.positions = positions_of(given, wanted)
        validate_width(width)
        width = width or max(wanted[1] // 2, 1)
        self.first = Pointwise(given[1], width, bias=False)
        self.first_norm = BatchNorm(width)
        self.middle = convolution(len(self.positions), (width, width), 3, padding=1, bias=False)
        self.middle_norm = BatchNorm(width)
        self.last = Pointwise(width, wanted[1], bias=not rectified)
        self.last_norm = BatchNorm(wanted[1]) if rectified else nn.Identity()
        self.rectified = rectified

    def forward(self, features: Tensor) -> Tensor:
        """Return (batch, wanted channels, *wanted positions)."""
        features = self.first_norm(self.first(fitted(features, self.positions))).relu()
        features = self.middle_norm(self.middle(features)).relu()
        features = self.last_norm(self.last(features))
        return features.relu() if self.rectified else features
