"""Compare outputs token by token, where each has a label of its own or none."""

from dataclasses import dataclass

from torch import Tensor

from kdkit.errors import RecipeError
from kdkit.losses.loss import Loss, asked_by


@dataclass(frozen=True, slots=True)
class Tokens:
    """A loss on outputs, over the tokens that have a label, each as a sample (GKD, Agarwal et al. 2024, as in trl).

    Both (batch, tokens, classes) logits, labels (batch, tokens) -> the loss's scalar over (kept tokens, classes); 0
    where none is kept. ignore: the label of tokens that are left out. loss: one without weights of its own; it is
    given the labels of the kept tokens if it asks for them.
    """

    loss: Loss
    ignore: int = -100

    def __post_init__(self) -> None:
        if not callable(self.loss) or hasattr(self.loss, "build") or asked_by(self.loss) - {"labels"}:
            raise RecipeError(f"Tokens takes a loss on outputs without weights, ids or progress; got {self.loss!r}")

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the loss over the kept tokens."""
        if labels.shape != student.shape[:-1]:
            raise RecipeError(
                f"Tokens needs a label for every token, of shape {tuple(student.shape[:-1])}; got {tuple(labels.shape)}"
            )
        kept = labels != self.ignore
        if not kept.any():
            return student.sum() * 0.0
        asked = {"labels": labels[kept]} if asked_by(self.loss) else {}
        return self.loss(student[kept], target[kept], **asked)
