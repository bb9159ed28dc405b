"""Reuse a teacher's head on a student's body, with a projector between, as one net that is deployed whole (SimKD)."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses import BuildContext
from kdkit.losses.features import single_tap_shape
from kdkit.losses.projectors import Bottleneck
from kdkit.nets.net import Net
from kdkit.nets.taps import Tap, TapLike
from kdkit.recipe.objective import Match

Shape = tuple[int, ...]


class SimKD(nn.Module):
    """A student's body, a trained projector to the teacher's last map, and a frozen copy of the teacher's head.

    body: inputs -> features. head: the teacher's pooling and classifier, features -> (batch, classes); what a net is
    given beside its first input goes to the head. given, wanted: the shapes of the body's features and of the
    teacher's, (channels, *positions). width: channels in the middle of the projector; half the teacher's by default.
    `match` makes the term that it learns by; labels are not needed. Raises RecipeError for shapes that cannot meet.
    Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier", arXiv:2203.14001.
    """

    def __init__(
        self, body: nn.Module, head: nn.Module, *, given: Shape, wanted: Shape, width: int | None = None
    ) -> None:
        super().__init__()
        for name, part in (("body", body), ("head", head)):
            if not isinstance(part, nn.Module):
                raise RecipeError(f"the {name} of SimKD is an nn.Module; got a {type(part).__name__}")
        self.given = _shape("given", given)
        wanted = _shape("wanted", wanted)
        self.body = body
        self.projector = Bottleneck(torch.Size((1, *given)), torch.Size((1, *wanted)), width=width)
        self.head = copy.deepcopy(head).requires_grad_(False).eval()
        self._reused = (head,)  # in a tuple, so that the teacher's weights are not taken for the student's

    def forward(self, inputs: Tensor, *beside: Any) -> Tensor:
        """Return the outputs, (batch, classes). Raises RecipeError where the body gives other channels than said."""
        features = self.body(inputs)
        if features.ndim != len(self.given) + 1 or features.shape[1] != self.given[0]:
            raise RecipeError(
                f"the body of SimKD gives features of {tuple(features.shape[1:])} where given={self.given}; give it "
                "the shape of one sample, (channels, *positions), before any pooling"
            )
        outputs: Tensor = self.head(self.projector(features), *beside)
        return outputs

    def match(self, teacher: Net[Any], target: TapLike) -> Match:
        """Return the term that it is trained by, to the features that the teacher's head is given.

        Mean squared error over all entries. The head is copied anew as training begins: by then the teacher of an
        earlier stage is trained.
        """
        loss = _ToReusedHead(self)
        return Match(teacher, loss, student=Tap(self.projector), target=target, label=f"{teacher.name}/simkd")

    def copy_head(self) -> None:
        """Take the weights of the teacher's head as they are now."""
        self.head.load_state_dict(self._reused[0].state_dict())


def _shape(name: str, shape: object) -> Shape:
    """Return the shape of one sample's features. Raises RecipeError for anything else."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise RecipeError(f"{name} of SimKD is the shape of one sample's features, such as (64, 8, 8); got {shape!r}")
    return sizes


class _ToReusedHead(nn.Module):
    """Squared error between projected features and the teacher's; as training begins, the teacher's head is copied."""

    def __init__(self, student: SimKD) -> None:
        super().__init__()
        self._student = (student,)  # in a tuple: the student's weights are not the loss's

    def build(
        self,
        student: tuple[torch.Size, ...],
        target: tuple[torch.Size, ...],
        facts: BuildContext,
        teacher: nn.Module | None,
    ) -> None:
        """Raise RecipeError where the projector does not give what the teacher's head is given."""
        projected, features = student[0], single_tap_shape(target, self._student[0])
        if projected[1:] != features[1:]:
            raise RecipeError(
                f"the projector gives features of {tuple(projected[1:])}, but those of the teacher are "
                f"{tuple(features[1:])}; write SimKD(..., wanted={tuple(features[1:])})"
            )

    def train(self, mode: bool = True) -> Self:
        """Copy the head before each epoch: not in `build`, since a rehearsal puts a net's buffers back."""
        if mode:
            self._student[0].copy_head()
        return super().train(mode)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the error, least (0) where the projected features are the teacher's."""
        return F.mse_loss(student, target)
