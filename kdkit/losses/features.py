"""Shared parts of the losses on features: a base class with a projector, and checks of shapes."""

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.numerics import cast_for
from kdkit.losses.projectors.factory import ProjectorKind, ProjectorMode, make_projector, validate_projector_kind
from kdkit.losses.projectors.resizing import resize
from kdkit.losses.sides import Shapes
from kdkit.losses.validation import ONE_OUTPUT, require_built, require_sides, validate_choice


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
