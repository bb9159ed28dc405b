"""Projectors with convolutions over positions and batch norms (FitNets' regressor and SimKD's bottleneck)."""

import torch
from torch import Tensor, nn

from kdkit.losses.projectors.layers import BatchNorm, Pointwise, convolution, doubling, require_dimensions
from kdkit.losses.projectors.linear import Positions, fit_positions, target_positions
from kdkit.losses.validation import validate_count

LARGEST_KERNEL = 17


class Regressor(nn.Module):
    """The convolutional regressor of FitNets, then batch norm and ReLU: (batch, channels, ...) -> the target's shape.

    input_shape, target_shape: as in Projector. The convolution has no padding, and its kernel is just long enough for
    the positions to shrink to the target's (Romero et al. 2015, sec. 2.2). To halve positions, it has a kernel of 3 and
    a stride of 2; to double them, it is transposed. If positions grow otherwise, or the kernel would be longer than 17,
    they are resized first, and a kernel of 3 is padded. relu=False leaves the ReLU out, for a target with negative
    values. Raises RecipeError for shapes that do not fit.
    """

    def __init__(self, input_shape: torch.Size, target_shape: torch.Size, *, relu: bool = True) -> None:
        super().__init__()
        positions = target_positions(input_shape, target_shape)
        current, dimensions = tuple(input_shape[2:]), len(positions)
        channels = (input_shape[1], target_shape[1])
        # not strict: tokens and maps have different numbers of dimensions, and take the last branch
        pairs = list(zip(current, positions, strict=False))
        # without padding a kernel of k shrinks positions by k - 1
        kernel = tuple(before - after + 1 for before, after in pairs)
        self.positions: tuple[int, ...] | None = None
        if dimensions and all(before == 2 * after for before, after in pairs):
            self.conv = convolution(dimensions, channels, 3, stride=2, padding=1)
        elif dimensions and all(2 * before == after for before, after in pairs):
            self.conv = doubling(dimensions, channels)
        elif len(current) == dimensions and all(1 <= extent <= LARGEST_KERNEL for extent in kernel):
            self.conv = convolution(dimensions, channels, kernel)
        else:
            self.positions = positions
            self.conv = convolution(dimensions, channels, 3, padding=1)
        self.norm = BatchNorm(target_shape[1])
        self.relu = relu

    def forward(self, features: Tensor, positions: Positions = None) -> Tensor:
        """Return the projected features, (batch, target channels, *positions); positions default to the target's.

        A convolution that changes the number of positions itself ignores `positions`.
        """
        if self.positions is not None:
            features = fit_positions(features, self.positions if positions is None else positions)
        require_dimensions(features, self.conv)
        mapped: Tensor = self.norm(self.conv(features))
        return mapped.relu() if self.relu else mapped


class Bottleneck(nn.Module):
    """A map over channels, a convolution with a kernel of 3, and a second map, each with batch norm and ReLU.

    input_shape, target_shape: as in Projector. width: the channels of the convolution; by default half of the target's,
    as in SimKD (Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier", arXiv:2203.14001).
    rectified=False gives the last map a bias instead of batch norm and ReLU. Raises RecipeError for shapes that do not
    fit.
    """

    def __init__(
        self, input_shape: torch.Size, target_shape: torch.Size, *, width: int | None = None, rectified: bool = True
    ) -> None:
        super().__init__()
        self.positions = target_positions(input_shape, target_shape)
        validate_count("the width of a projector", width, optional=True)
        width = width or max(target_shape[1] // 2, 1)
        self.first = Pointwise(input_shape[1], width, bias=False)
        self.first_norm = BatchNorm(width)
        self.middle = convolution(len(self.positions), (width, width), 3, padding=1, bias=False)
        self.middle_norm = BatchNorm(width)
        # a bias before a batch norm would be removed by its mean
        self.last = Pointwise(width, target_shape[1], bias=not rectified)
        self.last_norm = BatchNorm(target_shape[1]) if rectified else nn.Identity()
        self.rectified = rectified

    def forward(self, features: Tensor, positions: Positions = None) -> Tensor:
        """Return the projected features, (batch, target channels, *positions); positions default to the target's."""
        features = fit_positions(features, self.positions if positions is None else positions)
        features = self.first_norm(self.first(features)).relu()
        require_dimensions(features, self.middle)
        features = self.middle_norm(self.middle(features)).relu()
        features = self.last_norm(self.last(features))
        return features.relu() if self.rectified else features
