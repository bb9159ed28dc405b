"""Layers for (batch, channels, *positions) with any number of dimensions, with or without positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError

Size = int | tuple[int, ...]

# By the number of dimensions of the positions.
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Pointwise(nn.Linear):
    """A linear map over channels at every position: a convolution with a kernel of 1, in any number of dimensions."""

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in channels, *positions) -> (batch, out channels, *positions). Raises RecipeError for others."""
        require_input_channels(features, self.in_features)
        mapped = super().forward(features.movedim(1, -1))
        # a compiled backward pass would otherwise assume wrong strides for the gradient
        return mapped.movedim(-1, 1).contiguous()


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of every channel over batch and positions, in any number of dimensions.

    If there is only a single value per channel, it is normalised by the running statistics, as in eval mode. In fp16,
    channels of equal numbers get no gradient, which is the error times 1 / √eps and may exceed the range.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, *positions) -> the same shape."""
        if features.numel() == features.shape[1]:  # torch's batch norm raises for a single value, which has no variance
            return F.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        # BatchNorm1d takes (batch, channels) or (batch, channels, length), so maps are flattened
        flat = features.flatten(2) if features.ndim > 3 else features
        if flat.dtype == torch.float16 and self.training:
            dims = [0, *range(2, flat.ndim)]
            values = flat.detach()
            is_constant = values.amax(dims, keepdim=True) == values.amin(dims, keepdim=True)
            flat = torch.where(is_constant, values, flat)
        return super().forward(flat).reshape(features.shape)


def convolution(
    dimensions: int,
    channels: tuple[int, int],
    kernel: Size,
    *,
    stride: Size = 1,
    padding: Size = 0,
    bias: bool = True,
    groups: int = 1,
) -> nn.Module:
    """Return a convolution from channels[0] to channels[1] over 1 to 3 dimensions; for 0 dimensions, a linear map."""
    if dimensions == 0:
        return Pointwise(*channels, bias=bias)
    _validate_dimensions(dimensions)
    sizes = {"kernel_size": kernel, "stride": stride, "padding": padding, "groups": groups}
    return _CONVOLUTIONS[dimensions](*channels, bias=bias, **sizes)  # type: ignore[arg-type]  # one size per dimension


def doubling(dimensions: int, channels: tuple[int, int]) -> nn.Module:
    """Return a transposed convolution that doubles every dimension of the positions."""
    _validate_dimensions(dimensions)
    # a kernel of 4 is divisible by the stride, so every output position gets as many inputs
    return _TRANSPOSED[dimensions](*channels, kernel_size=4, stride=2, padding=1)


def require_input_channels(features: Tensor, channels: int) -> None:
    """Raise RecipeError unless features have the channels that a layer is built for."""
    if features.shape[1] != channels:
        raise RecipeError(_other_shape(f"(batch, {channels}, ...)", features))


def require_dimensions(features: Tensor, layer: nn.Module) -> None:
    """Raise RecipeError unless features have as many dimensions as a `convolution` takes.

    torch would take (channels, *positions) as a sample without a batch.
    """
    dimensions = layer.get_parameter("weight").ndim - 2
    if features.ndim - 2 != dimensions:
        raise RecipeError(_other_shape(f"with {dimensions} dimensions of positions", features))


def _other_shape(expected: str, features: Tensor) -> str:
    return (
        f"a layer of the loss is built for features {expected}; got {tuple(features.shape)}: build the loss for the "
        "shapes that it gets"
    )


def _validate_dimensions(dimensions: int) -> None:
    if dimensions not in _CONVOLUTIONS:
        raise RecipeError(f"features have up to three dimensions of positions; got {dimensions}")
