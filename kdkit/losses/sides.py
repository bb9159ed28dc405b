"""The two sides of a loss, the student and the target: each is a tensor, or a tuple of one tensor per tap."""

from collections.abc import Callable

import torch
from torch import Tensor

TensorOrTuple = Tensor | tuple[Tensor, ...]

# The shapes of one side, one per tap, each with the batch as its first dimension.
Shapes = tuple[torch.Size, ...]


def as_tuple(side: TensorOrTuple) -> tuple[Tensor, ...]:
    """Return a side as a tuple of one tensor per tap."""
    return side if isinstance(side, tuple) else (side,)


def map_side(change: Callable[[Tensor], Tensor], side: TensorOrTuple) -> TensorOrTuple:
    """Return a side of a term with `change` applied to its tensor, or to each of them."""
    return tuple(map(change, side)) if isinstance(side, tuple) else change(side)
