"""Apply losses on outputs to every position, such as the pixels of an image or the tokens of a text."""

from dataclasses import dataclass

from torch import Tensor

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildableLoss, Loss, extra_kwargs_of


@dataclass(frozen=True, slots=True)
class PerPosition:
    """Apply a loss on outputs to the positions that have a label, taking each position as a sample.

    The unit and the reduction are those of `loss`, over (selected positions, classes); 0 if no position is selected. A
    stage does this by itself for losses of kdkit on outputs; use it for a user-defined loss, or to select others.
    ignore_index: the label of positions that are left out; None selects all, also those of images without labels.
    loss: one without weights; it receives the labels of the selected positions if it accepts labels.

    Formula: loss(s[k], t[k]), with k the positions whose label is not `ignore_index`
    Shapes: logits (N, C, L), (N, C, H, W); labels (N, L), (N, H, W)
    Source: Liu et al. 2019, "Structured Knowledge Distillation for Semantic Segmentation", arXiv:1903.04197, eq. 1
    """

    loss: Loss
    ignore_index: int | None = -100

    def __post_init__(self) -> None:
        if self.ignore_index is not None and (
            isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int)
        ):
            raise RecipeError(
                f"ignore_index is the integer label of positions to leave out, such as 255, or None; got "
                f"{self.ignore_index!r}"
            )
        _require_loss_of_rows(self.loss, self)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """Return the loss over the selected positions."""
        rows = (as_rows(student), as_rows(target))
        if labels is None or (self.ignore_index is None and not extra_kwargs_of(self.loss)):
            return self.loss(*rows)
        if labels.shape != student.shape[:1] + student.shape[2:]:
            raise RecipeError(
                f"PerPosition needs a label for every position of outputs {tuple(student.shape)}; got labels "
                f"{tuple(labels.shape)}"
            )
        labels = labels.flatten()
        return _loss_of_rows(
            self.loss, rows, labels, None if self.ignore_index is None else labels != self.ignore_index
        )


@dataclass(frozen=True, slots=True)
class PerToken:
    """Apply a loss on outputs to the tokens that have a label, taking each token as a sample.

    The unit and the reduction are those of `loss`, over (selected tokens, classes), as in trl; 0 if no token is
    selected. ignore: the label of tokens that are left out. loss: one without weights; it receives the labels of the
    selected tokens if it accepts labels.

    Formula: loss(s[k], t[k]), with k the tokens whose label is not `ignore`
    Shapes: logits (N, tokens, C); labels (N, tokens)
    Source: public code: trl, GKDTrainer; Agarwal et al. 2024, arXiv:2306.13649
    """

    loss: Loss
    ignore: int = -100

    per_position = True

    def __post_init__(self) -> None:
        if isinstance(self.ignore, bool) or not isinstance(self.ignore, int):
            raise RecipeError(f"ignore is the integer label of tokens to leave out, such as -100; got {self.ignore!r}")
        _require_loss_of_rows(self.loss, self)

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the loss over the selected tokens."""
        if labels.shape != student.shape[:-1]:
            raise RecipeError(
                f"PerToken needs a label for every token, of shape {tuple(student.shape[:-1])}; got "
                f"{tuple(labels.shape)}"
            )
        return _loss_of_rows(self.loss, (student, target), labels, labels != self.ignore)


def as_rows(outputs: Tensor) -> Tensor:
    """Return outputs with a row per position, (batch, classes, *positions) -> (batch * positions, classes)."""
    return outputs.movedim(1, -1).flatten(0, -2)


def _loss_of_rows(loss: Loss, sides: tuple[Tensor, Tensor], labels: Tensor, selected: Tensor | None) -> Tensor:
    """Return the loss of the selected rows. sides: student and target, (..., classes). labels: (...)."""
    student, target = sides
    if selected is not None:
        if not selected.any():
            return student.sum() * 0.0  # keeps the graph, so that a backward pass works
        # indexing by the mask flattens (batch, tokens, classes) to (selected tokens, classes)
        student, target, labels = student[selected], target[selected], labels[selected]
    kwargs = {"labels": labels} if extra_kwargs_of(loss) else {}
    return loss(student, target, **kwargs)


def _require_loss_of_rows(loss: Loss, wrapper: object) -> None:
    is_weightless = callable(loss) and not isinstance(loss, type | BuildableLoss)
    if not is_weightless or extra_kwargs_of(loss) - {"labels"}:
        raise RecipeError(
            f"{type(wrapper).__name__} takes a loss on outputs without weights, ids or progress; got {loss!r}"
        )
