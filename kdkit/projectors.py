"""Bring features of different shapes together, in any number of dimensions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError

_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Projector(nn.Module):
    """A trained linear map over channels, then a resize: (batch, channels, ...) -> the shape of the target.

    given, wanted: (batch, channels, *positions), with up to three dimensions of positions, as many in both; or a
    wanted (batch, channels), for which positions are averaged. Positions grow by interpolation and shrink by average
    pooling. Raises RecipeError for other shapes.
    """

    def __init__(self, given: torch.Size, wanted: torch.Size) -> None:
        super().__init__()
        if not 2 <= len(given) <= 5 or len(wanted) not in (2, len(given)):
            raise RecipeError(
                f"a projector maps (batch, channels, ...) to as many dimensions or to (batch, channels); "
                f"got {tuple(given)} for {tuple(wanted)}"
            )
        self.positions = tuple(wanted[2:])
        self.channels = nn.Linear(given[1], wanted[1])

    def forward(self, features: Tensor) -> Tensor:
        """Return (batch, wanted channels, *wanted positions)."""
        features = resize(features, self.positions)  # first, so that less is mapped when positions shrink
        mapped: Tensor = self.channels(features.movedim(1, -1))
        return mapped.movedim(-1, 1).contiguous()  # else a compiled backward pass mistakes the gradient's strides


def resize(features: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Return (batch, channels, *positions): interpolated where all grow, averaged otherwise; () averages all away."""
    if tuple(features.shape[2:]) == positions:
        return features
    if not positions:
        return features.flatten(2).mean(2)
    if all(now <= then for now, then in zip(features.shape[2:], positions, strict=True)):
        return F.interpolate(features, positions, mode=_MODES[len(positions)], align_corners=False)
    return _POOLS[len(positions)](features, positions)
