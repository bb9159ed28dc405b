"""Shared parts of the losses on features: checks of shapes, a base class with a projector, and normalisation."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.projectors.factory import ProjectorKind, ProjectorMode, make_projector, validate_projector_kind
from kdkit.losses.projectors.resizing import resize
from kdkit.losses.validation import ONE_OUTPUT, require_built, require_sides, validate_choice

# The student's or the target's side of a loss: one tensor, or a tuple of one tensor per tap.
TensorOrTuple = Tensor | tuple[Tensor, ...]

# The shapes of one side, one per tap, each with the batch as its first dimension.
Shapes = tuple[torch.Size, ...]

# Norms up to this count as 0 and are not divided by. Public code divides by max(norm, 1e-12) or norm + 1e-12 instead,
# which multiplies the gradient of a zero vector by 1e12. See `least_norm` for fp16.
MIN_NORM = 1e-12


class ProjectedLoss(nn.Module):
    """Base class of a loss between two features of one shape, with a projector for students of another shape.

    The projector is trained with the student and discarded after training. projector: "auto" makes one if the shapes
    differ, "always" in any case, "never" raises RecipeError if the shapes differ. kind: "linear", "conv", "mlp",
    "bottleneck" or "orthogonal"; see kdkit.losses.projectors. Subclasses implement `compare`.
    """

    def __init__(self, *, projector: ProjectorMode = "auto", kind: ProjectorKind = "linear") -> None:
        super().__init__()
        validate_choice("projector", projector, ProjectorMode)
        validate_projector_kind(kind)
        self.projector_mode = projector
        self.kind = kind
        self.projector: nn.Module = nn.Identity()

    def build(
        self, student: Shapes, target: Shapes, context: BuildContext | None = None, teacher: nn.Module | None = None
    ) -> None:
        """Create the projector for these shapes. Raises RecipeError if it cannot map one to the other.

        context and teacher are not needed: a user-defined loop calls `hint.build((student.shape,), (target.shape,))`.
        """
        student_shape, target_shape = single_tap_shape(student, self), single_tap_shape(target, self)
        if needs_projector(student_shape, target_shape, self.projector_mode, self):
            self.projector = make_projector(self.kind, student_shape, target_shape)
        else:
            self.projector = nn.Identity()  # also replaces the projector of an earlier build

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the loss between the projected student and the target."""
        require_sides(student, target, self)
        return self.compare(self.project(student, target), target)

    def project(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the student's features in the shape of the target's, whose positions may differ between batches.

        Raises RecipeError if they need a projector, and `build` was not called.
        """
        positions = tuple(target.shape[2:])
        require_built(self.projector_mode != "always" or not isinstance(self.projector, nn.Identity), self)
        if not isinstance(self.projector, nn.Identity):
            student = self.projector(cast_for(self.projector, student), positions)
        require_same_channels(student, target, self)
        return resize(student, positions)

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the loss between two features of one shape."""
        raise NotImplementedError


def single_tap_shape(shapes: Shapes, loss: Any) -> torch.Size:
    """Return the shape of the only tap. Raises RecipeError for several taps, or if it has no channels."""
    if len(shapes) != 1:
        raise RecipeError(
            f"{type(loss).__name__} takes one tap on each side; got {len(shapes)}: write a term for each pair of taps, "
            "each with a name: Match(..., label='layer 2', student=Tap(...), target=Tap(...))"
        )
    require_channels(loss, shapes)
    return shapes[0]


def require_channels(loss: Any, *sides: Shapes) -> None:
    """Raise RecipeError unless each side has a tap, and every shape is (batch, channels, ...)."""
    for shapes in sides:
        if not shapes or any(len(shape) < 2 for shape in shapes):
            got = ", ".join(str(tuple(shape)) for shape in shapes) or "no tap"
            raise RecipeError(
                f"{type(loss).__name__} compares features (batch, channels, ...); got {got}; {ONE_OUTPUT}"
            )


def needs_projector(student: torch.Size, target: torch.Size, mode: ProjectorMode, loss: Any) -> bool:
    """Return whether to create a projector for these shapes. Raises RecipeError if they differ and mode is "never"."""
    differ = student[1:] != target[1:]  # the batch size does not matter
    if differ and mode == "never":
        raise RecipeError(
            f"features of {tuple(student[1:])} cannot be compared to {tuple(target[1:])} without a projector; "
            f"use {type(loss).__name__}(projector='auto')"
        )
    return differ or mode == "always"


def as_tuple(side: TensorOrTuple) -> tuple[Tensor, ...]:
    """Return a side as a tuple of one tensor per tap."""
    return side if isinstance(side, tuple) else (side,)


def map_side(change: Callable[[Tensor], Tensor], side: TensorOrTuple) -> TensorOrTuple:
    """Return a side of a term with `change` applied to its tensor, or to each of them."""
    return tuple(map(change, side)) if isinstance(side, tuple) else change(side)


def require_pairs(student: int, target: int, loss: Any) -> None:
    """Raise RecipeError unless the student and the target have the same number of taps."""
    if student != target:
        raise RecipeError(
            f"{type(loss).__name__} compares taps in pairs, from shallow to deep; got {student} of the student and "
            f"{target} of the teacher"
        )


def require_built_taps(taps: tuple[int, int], built: tuple[int, int], loss: Any) -> None:
    """Raise RecipeError unless the numbers of taps of student and target are those that a loss is built for."""
    if taps != built:
        raise RecipeError(
            f"{type(loss).__name__} is built for {built[0]} taps of the student and {built[1]} of the teacher; got "
            f"{taps[0]} and {taps[1]}: build it for the shapes of these taps"
        )


def require_positions(features: Tensor, loss: Any) -> Tensor:
    """Return the features. Raises RecipeError if they are vectors (batch, channels), without positions."""
    if features.ndim < 3:
        raise RecipeError(
            f"{type(loss).__name__} compares positions, so features are (batch, channels, positions...); "
            f"got {tuple(features.shape)}: tap a layer before it is pooled"
        )
    return features


def require_same_features(student: Tensor, target: Tensor, loss: Any) -> None:
    """Raise RecipeError unless both have one shape, for a loss without a projector."""
    if student.shape != target.shape:
        raise RecipeError(
            f"{type(loss).__name__} compares features of one shape; got {tuple(student.shape[1:])} and "
            f"{tuple(target.shape[1:])}: use Hint(), which has a linear projector"
        )


def require_same_channels(student: Tensor, target: Tensor, loss: Any) -> None:
    """Raise RecipeError unless the student's features, projected if they need it, have the target's channels."""
    if student.ndim != target.ndim or student.shape[1] != target.shape[1]:
        raise RecipeError(
            f"{type(loss).__name__} compares features of one shape; got {tuple(student.shape)} and "
            f"{tuple(target.shape)}: create its projector before the optimizer, for the shapes that it gets, by "
            "loss.build((student.shape,), (target.shape,)), and in a build of your own by super().build(...)"
        )


def upcast_half(features: Tensor) -> Tensor:
    """Return half-precision features in float32, and others unchanged."""
    # fp16 overflows at 65504, which sums and powers soon exceed; bf16 keeps 8 significant bits.
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def cast_for(module: nn.Module, features: Tensor) -> Tensor:
    """Return features in bf16, fp16 or float64 in the precision of the module's weights.

    Under autocast, which casts them itself, they are returned unchanged.
    """
    # most steps need the first comparison only: a walk over the parameters takes 20 µs
    if features.dtype == torch.float32 or torch.is_autocast_enabled(features.device.type):
        return features
    weight = next(module.parameters(), None)
    return features if weight is None else features.to(weight.dtype)


def least_norm(features: Tensor) -> float:
    """Return the norm up to which features of this precision count as 0.

    A gradient goes back to the precision of the features, even if they are upcast for the loss. It grows as 1 / norm,
    which exceeds the range of fp16 for norms below its least normal number, 6e-5.
    """
    return torch.finfo(torch.float16).tiny if features.dtype == torch.float16 else MIN_NORM


def unit_vectors(vectors: Tensor, dim: int = 1, *, least: float = MIN_NORM) -> Tensor:
    """Return vectors divided by their length along `dim`. Lengths up to `least` count as 0.

    Vectors of length 0 keep their values, with a finite gradient. For upcast features, pass their `least_norm`.
    """
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / torch.where(length > least, length, 1.0)


def standardise(features: Tensor, dim: int | list[int], eps: float, *, correction: int = 1) -> Tensor:
    """Return features with mean 0 and standard deviation 1 along `dim`, in float32 or better.

    eps is added to the deviation. Equal numbers become 0 without a gradient, which would be about 1 / eps.
    """
    numbers = upcast_half(features)
    deviation, mean = torch.std_mean(numbers, dim, correction=correction, keepdim=True)
    return (numbers - mean) / torch.where(deviation > least_norm(features), deviation + eps, math.inf)


def flatten_samples(features: Tensor) -> Tensor:
    """Return one vector per sample, (batch, numbers), in float32 or better."""
    return upcast_half(features).flatten(1)


def rescale_by_max(samples: Tensor, *, least: float) -> Tensor:
    """Return samples divided by their largest absolute value, for relations that do not depend on the scale.

    Products of very small or very large numbers would otherwise underflow or overflow. Samples up to `least` become 0.
    """
    largest = samples.detach().abs().amax()
    return samples / torch.where(largest > least, largest, math.inf)


def gram_matrix(samples: Tensor) -> Tensor:
    """Return the inner products of all pairs of samples, (batch, batch)."""
    return samples @ samples.T


def without_autocast(side: TensorOrTuple) -> torch.autocast:
    """Return a context that disables autocast, so that matrix products keep the precision of their inputs."""
    return torch.autocast(as_tuple(side)[0].device.type, enabled=False)
