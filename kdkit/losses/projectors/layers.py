"""Layers that work on (batch, channels, *positions) of any dimension, none included."""

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError

Size = int | tuple[int, ...]

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Pointwise(nn.Linear):
    """A linear map over channels, at every position alike: a convolution with a kernel of 1 in any dimension."""

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, *positions) -> (batch, other channels, *positions)."""
        mapped = super().forward(features.movedim(1, -1))
        return mapped.movedim(-1, 1).contiguous()  # else a compiled backward pass mistakes the gradient's strides


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of every channel over batch and positions, in any dimension.

    A single value per channel has no spread: it is then normalised by the running statistics, as in eval mode.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, *positions) -> the same shape."""
        if features.numel() == features.shape[1]:
            return F.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(features.flatten(2) if features.ndim > 3 else features).reshape(features.shape)


def convolution(
    dimensions: int,
    channels: tuple[int, int],
    kernel: Size,
    *,
    stride: Size = 1,
    padding: Size = 0,
    bias: bool = True,
) -> nn.Module:
    """Return a convolution from channels[0] to channels[1] over so many dimensions of positions; over none, a map."""
    if dimensions == 0:
        return Pointwise(*channels, bias=bias)
    validate_dimensions(dimensions)
    sizes = {"kernel_size": kernel, "stride": stride, "padding": padding}
    return _CONVOLUTIONS[dimensions](*channels, bias=bias, **sizes)  # type: ignore[arg-type]  # as many as dimensions


def doubling(dimensions: int, channels: tuple[int, int]) -> nn.Module:
    """Return a transposed convolution that doubles every dimension of positions."""
    validate_dimensions(dimensions)
    return _TRANSPOSED[dimensions](*channels, kernel_size=4, stride=2, padding=1)


def validate_width(width: int | None) -> None:
    """Raise RecipeError unless a width in channels is a whole number of at least 1, or None."""
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
        raise RecipeError(f"a projector's width is a whole number of at least 1; got {width!r}")


def validate_dimensions(dimensions: int) -> None:
    """Raise RecipeError for more dimensions of positions than torch convolves over."""
    if dimensions not in _CONVOLUTIONS:
        raise RecipeError(f"features have up to three dimensions of positions; got {dimensions}")
