"""Shared parts of the losses on features."""

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.projectors.factory import Kind, When, make_projector, validate_kind, validate_when

Sided = Tensor | tuple[Tensor, ...]

Shapes = tuple[torch.Size, ...]

SILENT = 1e-12  # where public code divides by this instead, whose gradient is 1e12


class Projected(nn.Module):
    """A loss between features of one shape, to which a projector that is trained with the student brings it.

    projector: "auto" makes one where the shapes differ, "always" in any case, "never" refuses shapes that differ.
    kind: "linear", "conv", "mlp" or "bottleneck"; see kdkit.projectors.
    """

    def __init__(self, *, projector: When = "auto", kind: Kind = "linear") -> None:
        super().__init__()
        validate_when(projector)
        validate_kind(kind)
        self.when = projector
        self.kind = kind
        self.projector: nn.Module = nn.Identity()

    def build(self, student: Shapes, target: Shapes, facts: BuildContext, teacher: nn.Module | None) -> None:
        """Make the projector for these shapes. Raises RecipeError where they cannot meet."""
        given, wanted = one(student, self), one(target, self)
        differ = given[1:] != wanted[1:]
        if differ and self.when == "never":
            raise RecipeError(
                f"features of {tuple(given[1:])} cannot meet {tuple(wanted[1:])} without a projector; "
                f"{type(self).__name__}(projector='auto') makes one"
            )
        made = differ or self.when == "always"
        self.projector = make_projector(self.kind, given, wanted) if made else nn.Identity()

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return what is between the projected student and the target."""
        return self.between(self.projector(student), target)

    def between(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the loss of two features of one shape."""
        raise NotImplementedError


def one(shapes: Shapes, loss: Any) -> torch.Size:
    """Return the only shape. Raises RecipeError for several taps."""
    if len(shapes) != 1:
        raise RecipeError(f"{type(loss).__name__} takes one tap on each side; got {len(shapes)}")
    if len(shapes[0]) < 2:
        raise RecipeError(f"{type(loss).__name__} compares (batch, channels, ...); got {tuple(shapes[0])}")
    return shapes[0]


def several(side: Sided) -> tuple[Tensor, ...]:
    """Return a side as a tuple, also of a single tap."""
    return side if isinstance(side, tuple) else (side,)


def in_pairs(student: int, target: int, loss: Any) -> None:
    """Raise RecipeError unless there are as many taps on one side as on the other."""
    if student != target:
        raise RecipeError(
            f"{type(loss).__name__} compares taps in pairs, from shallow to deep; got {student} of the student and "
            f"{target} of the teacher"
        )


def with_positions(features: Tensor, loss: Any) -> Tensor:
    """Return the features. Raises RecipeError where they are vectors, of which the loss says nothing."""
    if features.ndim < 3:
        raise RecipeError(
            f"{type(loss).__name__} compares positions, so features are (batch, channels, positions...); "
            f"got {tuple(features.shape)}: tap a layer before it is pooled"
        )
    return features


def same_shape(student: Tensor, target: Tensor, loss: Any) -> None:
    """Raise RecipeError for two shapes in a loss that has no projector of its own."""
    if student.shape != target.shape:
        raise RecipeError(
            f"{type(loss).__name__} compares features of one shape; got {tuple(student.shape[1:])} and "
            f"{tuple(target.shape[1:])}: Hint() brings such together with a linear projector"
        )


def full(features: Tensor) -> Tensor:
    """Return features in single precision at least, for sums and powers that half precision cannot hold."""
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def direction(vectors: Tensor, dim: int = 1) -> Tensor:
    """Return vectors of length 1; those of length 0 stay as they are, and give a gradient that is finite."""
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / torch.where(length > SILENT, length, 1.0)


def vectors(features: Tensor) -> Tensor:
    """Return (batch, numbers), in single precision at least: one vector for each sample."""
    return full(features).flatten(1)


def scaled(samples: Tensor) -> Tensor:
    """Return samples whose largest number is 1, for relations that do not see the scale.

    Products of small numbers, and what is divided by these, would leave what a float holds.
    """
    size = samples.detach().abs().amax()
    return samples / torch.where(size > SILENT, size, 1.0)


def products(samples: Tensor) -> Tensor:
    """Return the inner products of all pairs, (batch, batch)."""
    return samples @ samples.T


def without_autocast(side: Sided) -> torch.autocast:
    """Return the context in which products are computed in the precision of their factors."""
    return torch.autocast(several(side)[0].device.type, enabled=False)
