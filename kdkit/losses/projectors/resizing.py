"""Change the number of positions of features, and convert between token sequences and maps."""

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from kdkit.errors import RecipeError

# By the number of dimensions of the positions.
POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
_INTERPOLATION_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(features: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Return (batch, channels, *positions), interpolated if no dimension shrinks, otherwise average-pooled.

    Empty positions average over all of them: (batch, channels).
    """
    if tuple(features.shape[2:]) == positions:
        return features
    if not positions:
        return features.flatten(2).mean(2)
    if all(current <= new for current, new in zip(features.shape[2:], positions, strict=True)):
        return F.interpolate(features, positions, mode=_INTERPOLATION_MODES[len(positions)], align_corners=False)
    return POOLS[len(positions)](features, positions)


def match_positions(student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with the same positions: in each dimension, the larger is average-pooled to the smaller.

    Both (batch, channels, *positions); channels may differ. Tokens are rearranged to the aspect ratio of a map, and
    positions are averaged if a side has none. Raises RecipeError if tokens cannot be rearranged.
    """
    if 2 in (student.ndim, target.ndim):
        return resize(student, ()), resize(target, ())
    if student.ndim < target.ndim:
        student = rearrange_tokens(student, tuple(target.shape[2:]))
    elif target.ndim < student.ndim:
        target = rearrange_tokens(target, tuple(student.shape[2:]))
    smaller = tuple(min(pair) for pair in zip(student.shape[2:], target.shape[2:], strict=True))
    return resize(student, smaller), resize(target, smaller)


def rearrange_tokens(features: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Return tokens (batch, channels, tokens) as a map of this aspect ratio, row by row, or a map as this many tokens.

    Features with the dimensions of `positions` are returned unchanged; see `resize` for their size. Raises RecipeError
    if no map of this aspect ratio has as many positions as there are tokens. A class token is a common reason: leave it
    out of the tap.
    """
    current = tuple(features.shape[2:])
    if not current and positions:
        raise RecipeError(
            f"expected features with positions, (batch, channels, *positions), as `build` got their shape; got "
            f"{tuple(features.shape)}; average over the positions after the projector, not before"
        )
    if len(current) == len(positions) or not positions:
        return features
    grid = _token_grid(current, positions)
    if grid is None:
        raise RecipeError(
            f"{current} positions cannot be rearranged to the aspect ratio of {positions}; leave extra tokens, such as "
            "a class token, out of the tap: Tap(layer, element=lambda tokens: tokens[:, 1:], channels_last=True)"
        )
    # (batch, channels, tokens) -> (batch, channels, *grid), or a map -> (batch, channels, tokens)
    return features.reshape(*features.shape[:2], *grid) if len(current) == 1 else resize(features, grid).flatten(2)


def can_rearrange(current: tuple[int, ...], positions: tuple[int, ...]) -> bool:
    """Return whether `rearrange_tokens` can rearrange features with the current positions to the given ones."""
    return len(current) == len(positions) or not positions or _token_grid(current, positions) is not None


def _token_grid(current: tuple[int, ...], positions: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the map with one position per token and the aspect ratio of the map, or None if there is none.

    One of the arguments is a number of tokens, the other a map.
    """
    if 1 not in (len(current), len(positions)) or not current:
        return None
    (tokens,), aspect = (current, positions) if len(current) == 1 else (positions, current)
    scale = (tokens / math.prod(aspect)) ** (1 / len(aspect))
    grid = tuple(round(extent * scale) for extent in aspect)
    # 1e-6 allows for the rounding of the root: 24 tokens for (8, 12) give a scale of 0.5, up to its last digits
    keeps_aspect = all(abs(extent * scale - side) < 1e-6 for extent, side in zip(aspect, grid, strict=True))
    return grid if keeps_aspect else None
