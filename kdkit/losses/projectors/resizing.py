"""Change how many positions features have, and how these are laid out."""

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError

POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(features: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Return (batch, channels, *positions): interpolated where all grow, averaged otherwise; () averages all away."""
    if tuple(features.shape[2:]) == positions:
        return features
    if not positions:
        return features.flatten(2).mean(2)
    if all(now <= then for now, then in zip(features.shape[2:], positions, strict=True)):
        return F.interpolate(features, positions, mode=_MODES[len(positions)], align_corners=False)
    return POOLS[len(positions)](features, positions)


def meet(student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with as many positions as the smaller has, in each dimension: the larger is averaged to it.

    Both (batch, channels, *positions); channels may differ. PerToken are laid out as the map they meet, and positions
    averaged away for a vector. Raises RecipeError where tokens cannot be laid out so.
    """
    if 2 in (student.ndim, target.ndim):
        return resize(student, ()), resize(target, ())
    if student.ndim < target.ndim:
        student = arrange(student, tuple(target.shape[2:]))
    elif target.ndim < student.ndim:
        target = arrange(target, tuple(student.shape[2:]))
    smaller = tuple(min(pair) for pair in zip(student.shape[2:], target.shape[2:], strict=True))
    return resize(student, smaller), resize(target, smaller)


def arrange(features: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Return tokens (batch, channels, tokens) as a map of this aspect, row by row, or a map as so many tokens.

    A map then has its own size, not yet that of `positions`; see `resize`. Raises RecipeError where the count of
    tokens is not that of a map of this aspect, as with a class token, which is to be left out of the tap.
    """
    now = tuple(features.shape[2:])
    if len(now) == len(positions) or not positions:
        return features
    grid = _grid(now, positions)
    if grid is None:
        raise RecipeError(
            f"{now} positions cannot be laid out like {positions}; leave extra tokens, as that of the class, out"
        )
    return features.reshape(*features.shape[:2], *grid) if len(now) == 1 else resize(features, grid).flatten(2)


def arrangeable(now: tuple[int, ...], positions: tuple[int, ...]) -> bool:
    """Whether `arrange` can lay so many positions out as these."""
    return len(now) == len(positions) or not positions or _grid(now, positions) is not None


def _grid(now: tuple[int, ...], positions: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the map of as many positions as there are tokens, in the aspect of the map; None where there is none."""
    if 1 not in (len(now), len(positions)) or not now:
        return None
    (tokens,), aspect = (now, positions) if len(now) == 1 else (positions, now)
    scale = (tokens / math.prod(aspect)) ** (1 / len(aspect))
    grid = tuple(round(extent * scale) for extent in aspect)
    in_aspect = all(abs(extent * scale - side) < 1e-6 for extent, side in zip(aspect, grid, strict=True))
    return grid if in_aspect else None
