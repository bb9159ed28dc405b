"""SimKD: a student's body, a projector, and a copy of the teacher's head, deployed as one network."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.features import single_tap_shape
from kdkit.losses.projectors.convolutional import Bottleneck
from kdkit.nets.net import Net
from kdkit.nets.taps import Tap, TapLike
from kdkit.recipe.objective import Match
from kdkit.utils.modules import copy_with_module
from kdkit.utils.validation import is_whole_number

Shape = tuple[int, ...]


class SimKD(nn.Module):
    """A student's body, a trained projector to the teacher's last feature map, and a frozen copy of the teacher's head.

    body: inputs -> features. head: the teacher's pooling and classifier, features -> (batch, classes); inputs after the
    first one are passed to the head.
    student_shape, teacher_shape: the shape of one sample's features, (channels, *positions), of the body and of the
    teacher. width: the number of channels inside the projector; by default, half the teacher's. A smaller student map
    is interpolated to the teacher's positions; the authors' code averages the teacher's map instead.
    `match` returns the term that trains it. Labels are not needed. Raises RecipeError if the projector cannot map one
    shape to the other.
    Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier", arXiv:2203.14001.
    """

    def __init__(
        self, body: nn.Module, head: nn.Module, *, student_shape: Shape, teacher_shape: Shape, width: int | None = None
    ) -> None:
        super().__init__()
        for name, part in (("body", body), ("head", head)):
            if not isinstance(part, nn.Module):
                raise RecipeError(f"the {name} of SimKD must be an nn.Module; got a {type(part).__name__}")
        self.student_shape = _validate_shape("student_shape", student_shape)
        teacher_shape = _validate_shape("teacher_shape", teacher_shape)
        self.body = body
        self.projector = Bottleneck(torch.Size((1, *student_shape)), torch.Size((1, *teacher_shape)), width=width)
        self.head = copy_with_module(head, head).requires_grad_(False).eval()
        self._reused = (head,)  # in a tuple, so that it is not a submodule

    def forward(self, inputs: Tensor, *head_inputs: Any) -> Tensor:
        """Return the outputs, (batch, classes). Raises RecipeError if the features do not fit `student_shape`."""
        features = self.body(inputs)
        if features.ndim != len(self.student_shape) + 1 or features.shape[1] != self.student_shape[0]:
            raise RecipeError(
                f"the body of SimKD returns features of shape {tuple(features.shape[1:])}; expected "
                f"{self.student_shape}; set student_shape to the shape of one sample, (channels, *positions), before "
                "any pooling"
            )
        outputs: Tensor = self.head(self.projector(features), *head_inputs)
        return outputs

    def match(self, teacher: Net[Any], target: TapLike) -> Match:
        """Return the term that trains the network. target: the tap on the features that the teacher's head takes.

        The loss is the mean squared error over all entries. The head is copied again when training starts, after
        earlier stages may have trained the teacher.
        """
        loss = _ToReusedHead(self)
        return Match(teacher, loss, student=Tap(self.projector), target=target, label=f"{teacher.name}/simkd")

    def copy_head(self) -> None:
        """Copy the current weights of the teacher's head."""
        self.head.load_state_dict(self._reused[0].state_dict())


def _validate_shape(name: str, shape: object) -> Shape:
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if not sizes or not all(is_whole_number(size) and size > 0 for size in sizes):
        raise RecipeError(
            f"{name} of SimKD must be the shape of one sample's features, such as (64, 8, 8); got {shape!r}"
        )
    return sizes


class _ToReusedHead(nn.Module):
    """Squared error between projected and teacher features. Copies the teacher's head when training starts."""

    def __init__(self, student: SimKD) -> None:
        super().__init__()
        self._student = (student,)  # in a tuple, so that it is not a submodule

    def build(
        self,
        student: tuple[torch.Size, ...],
        target: tuple[torch.Size, ...],
        context: BuildContext,
        teacher: nn.Module | None,
    ) -> None:
        """Raise RecipeError unless the projector returns features of the teacher's shape."""
        projected, features = student[0], single_tap_shape(target, self._student[0])
        if projected[1:] != features[1:]:
            raise RecipeError(
                f"the projector returns features of shape {tuple(projected[1:])}, but the teacher's have shape "
                f"{tuple(features[1:])}; write SimKD(..., teacher_shape={tuple(features[1:])})"
            )

    def train(self, mode: bool = True) -> Self:
        """Copy the head before each epoch. `build` is too early, because a dry run restores the buffers of networks."""
        if mode:
            self._student[0].copy_head()
        return super().train(mode)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error; 0 if the projected features equal the teacher's."""
        return F.mse_loss(student, target)
