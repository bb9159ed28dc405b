"""Compare outputs token by token, where each has a label of its own or none."""

from dataclasses import dataclass

from torch import Tensor

from kdkit.errors import RecipeError
from kdkit.losses.loss import Loss, asked_by


@dataclass(frozen=True, slots=True)
class Tokens:
    """A loss on outputs, over the tokens that have a label, each as a sample.

    The unit and the reduction are those of `loss`, over (kept tokens, classes), as in trl; 0 where none is kept.
    ignore: the label of tokens that are left out. loss: one without weights of its own; it is given the labels of the
    kept tokens if it asks for them.

    Formula: loss(s[k], t[k]), with k the tokens whose label is not `ignore`
    Shapes: logits (N, tokens, C); labels (N, tokens)
    Source: public code: trl, GKDTrainer; Agarwal et al. 2024, arXiv:2306.13649
    """

    loss: Loss
    ignore: int = -100

    def __post_init__(self) -> None:
        if isinstance(self.ignore, bool) or not isinstance(self.ignore, int):
            raise RecipeError(f"ignore is the whole number that stands for no label, such as -100; got {self.ignore!r}")
        plain = callable(self.loss) and not isinstance(self.loss, type) and not hasattr(self.loss, "build")
        if not plain or asked_by(self.loss) - {"labels"}:
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
