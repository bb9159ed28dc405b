"""Apply losses on outputs to every position, such as the pixels of an image or the tokens of a text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError, describe
from kdkit.losses.base import (
    BuildableLoss,
    BuildContext,
    Loss,
    accepts_no_rows,
    allows_any_classes,
    extra_kwargs_of,
    option_of,
)
from kdkit.losses.sides import Shapes, TensorOrTuple, as_tuple
from kdkit.utils.validation import is_whole_number

# The key of a mask in inputs that are a mapping, or a function of the inputs that returns it.
MaskSource = str | Callable[[Any], Tensor]


@dataclass(frozen=True, slots=True)
class PerPosition:
    """Apply a loss on outputs to the positions that have a label, taking each position as a sample.

    The unit and the reduction are those of `loss`, over (selected positions, classes); 0 if no position is selected. A
    stage does this automatically for kdkit's losses on outputs; use it for a user-defined loss, or to select other
    positions. ignore_index: the label of positions that are left out; None selects all, even those of images without
    labels. loss: a loss without weights; it receives the labels of the selected positions if it accepts labels.

    Formula: loss(s[k], t[k]), with k the positions whose label is not `ignore_index`
    Shapes: logits (N, C, L), (N, C, H, W); labels (N, L), (N, H, W)
    Source: Liu et al. 2019, "Structured Knowledge Distillation for Semantic Segmentation", arXiv:1903.04197, eq. 1
    """

    loss: Loss
    ignore_index: int | None = -100

    def __post_init__(self) -> None:
        if self.ignore_index is not None and not is_whole_number(self.ignore_index):
            raise RecipeError(
                f"ignore_index is the integer label of positions to leave out, such as 255, or None; got "
                f"{self.ignore_index!r}"
            )
        _require_loss_of_rows(self.loss, self)

    @property
    def any_classes(self) -> bool:
        """Whether the sides may have different classes, as for `loss`."""
        return allows_any_classes(self.loss)

    @property
    def reduction(self) -> Any:
        """The reduction of `loss`."""
        return option_of(self.loss, "reduction")

    @property
    def extra_kwargs(self) -> frozenset[str]:
        """The labels, if they select positions or `loss` takes them."""
        return extra_kwargs_of(self.loss) if self.ignore_index is None else frozenset({"labels"})

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """Return the loss over the selected positions."""
        rows = (as_rows(student), as_rows(target))
        if labels is None or (self.ignore_index is None and not extra_kwargs_of(self.loss)):
            return self.loss(*rows)
        for side in (student, target):
            if labels.shape != side.shape[:1] + side.shape[2:]:
                raise RecipeError(
                    f"PerPosition needs a label for every position of outputs {tuple(side.shape)}; got labels "
                    f"{tuple(labels.shape)}"
                )
        return _loss_of_rows(self.loss, rows, labels.flatten(), self.ignore_index)


@dataclass(frozen=True, slots=True)
class PerToken:
    """Apply a loss on outputs to the tokens that have a label, taking each token as a sample.

    The unit and the reduction are those of `loss`, over (selected tokens, classes), as in trl; 0 if no token is
    selected. ignore_index: the label of tokens that are left out. loss: a loss without weights; it receives the labels
    of the selected tokens if it accepts labels.

    Formula: loss(s[k], t[k]), with k the tokens whose label is not `ignore_index`
    Shapes: logits (N, tokens, C); labels (N, tokens)
    Source: public code: trl, GKDTrainer; Agarwal et al. 2024, arXiv:2306.13649
    """

    loss: Loss
    ignore_index: int = -100

    per_position = True

    def __post_init__(self) -> None:
        if not is_whole_number(self.ignore_index):
            raise RecipeError(
                f"ignore_index is the integer label of tokens to leave out, such as -100; got {self.ignore_index!r}"
            )
        _require_loss_of_rows(self.loss, self)

    @property
    def any_classes(self) -> bool:
        """Whether the sides may have different classes, as for `loss`."""
        return allows_any_classes(self.loss)

    @property
    def reduction(self) -> Any:
        """The reduction of `loss`."""
        return option_of(self.loss, "reduction")

    def __call__(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the loss over the selected tokens."""
        for side in (student, target):
            if labels.shape != side.shape[:-1]:
                raise RecipeError(
                    f"PerToken needs a label for every token, of shape {tuple(side.shape[:-1])}; got "
                    f"{tuple(labels.shape)}"
                )
        # (batch, tokens, classes) -> (tokens, classes)
        return _loss_of_rows(
            self.loss, (student.flatten(0, -2), target.flatten(0, -2)), labels.flatten(), self.ignore_index
        )


class Masked(nn.Module):
    """Apply a loss on features to the positions that a mask selects, such as the tokens of padded texts.

    The unit and the reduction are those of `loss`, which takes each selected position as a sample: a token counts once.
    0 if no position is selected. loss: a loss without extra keyword arguments; it may have a projector.
    mask: the key of the mask in inputs that are a mapping, or a function of the inputs that returns it. It is (batch,
    *positions), and above 0 or True at the positions that count. For outputs (batch, classes), a mask (batch,) selects
    samples, such as those that one of several teachers knows. Outputs of the shape of the mask are a number at each
    position. For attention maps (batch, heads, tokens, tokens), a mask (batch, tokens) selects the pairs whose query
    and key both count, with the heads as channels.
    target_mask: the mask of the target, if its positions are others, such as those of another tokenizer. The first
    token of a text that counts is then compared with the first one of the target, and so on, up to the shorter of both.

    Formula: loss(s[k], t[k]), with k the positions that the mask selects
    Shapes: features (N, C, L), (N, C, H, W), attention maps (N, heads, T, T), outputs (N, C); positions as in the mask
    Source: Sanh et al. 2019, "DistilBERT, a distilled version of BERT", arXiv:1910.01108, and its authors' code; for
        target_mask, Boizard et al. 2024, arXiv:2402.12030, and its authors' code
    """

    extra_kwargs = frozenset({"inputs"})

    def __init__(
        self, loss: Loss, mask: MaskSource = "attention_mask", *, target_mask: MaskSource | None = None
    ) -> None:
        super().__init__()
        if isinstance(loss, type) or not callable(loss) or extra_kwargs_of(loss):
            raise RecipeError(f"Masked takes a loss on features without extra keyword arguments; got {describe(loss)}")
        for source in (mask,) if target_mask is None else (mask, target_mask):
            require_mask_source(source)
        self.loss, self.mask, self.target_mask = loss, mask, target_mask
        self.of_pairs = False

    @property
    def any_classes(self) -> bool:
        """Whether the sides may have different classes, as for `loss`."""
        return allows_any_classes(self.loss)

    @property
    def reduction(self) -> Any:
        """The reduction of `loss`."""
        return option_of(self.loss, "reduction")

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Build the loss for rows of positions."""
        self.of_pairs = len(student[0]) == 4
        if isinstance(self.loss, BuildableLoss):
            rows = [
                tuple(as_rows(torch.empty(shape, device="meta")).shape for shape in shapes)
                for shapes in (student, target)
            ]
            self.loss.build(rows[0], rows[1], context, teacher)

    def forward(self, student: TensorOrTuple, target: TensorOrTuple, *, inputs: Any) -> Tensor:
        """Return the loss over the selected positions. Raises RecipeError if the features have other positions."""
        masks = self.masks_of(inputs, pairs=as_tuple(student)[0].ndim == 4)
        for sides, of_side in zip((student, target), masks, strict=True):
            _require_positions_of(of_side, as_tuple(sides))
        selected = masks[0].flatten().nonzero().squeeze(1)
        target_selected = selected if masks[1] is masks[0] else masks[1].flatten().nonzero().squeeze(1)
        if not len(selected) and not accepts_no_rows(self.loss):
            return _zero_of(as_tuple(student)[0])

        value: Tensor = self.loss(_rows_of(student, masks[0], selected), _rows_of(target, masks[1], target_selected))
        return value

    def extra_repr(self) -> str:
        """Return the loss, for the printed plan of a recipe."""
        return type(self.loss).__name__ if isinstance(self.loss, nn.Module) else repr(self.loss)

    def masks_of(self, inputs: Any, *, pairs: bool = False) -> tuple[Tensor, Tensor]:
        """Return which positions of the student and of the target count, both bool (batch, *positions).

        pairs: whether features have four dimensions; a mask (batch, tokens) then selects the tokens of attention maps,
        and becomes (batch, tokens, tokens). Raises RecipeError without a mask.
        """
        mask = read_mask(self.mask, inputs)
        if pairs and mask.ndim == 2:
            mask = mask[:, :, None] & mask[:, None, :]  # queries in rows
        return (mask, mask) if self.target_mask is None else _first_of_both(mask, read_mask(self.target_mask, inputs))


def read_mask(mask: MaskSource, inputs: Any) -> Tensor:
    """Return which positions of a batch count, bool (batch, *positions). Raises RecipeError without a mask."""
    if callable(mask):
        return mask(inputs) > 0
    try:
        entry: Tensor = inputs[mask]
    except (LookupError, TypeError):
        keys = ", ".join(map(repr, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise RecipeError(f"the inputs have no mask {mask!r}; got {keys}: pass mask=KEY or a function") from None
    return entry > 0


def require_mask_source(mask: object) -> None:
    """Raise RecipeError unless a mask is the key of one, or a function."""
    if not isinstance(mask, str) and not callable(mask):
        raise RecipeError(f"mask is a key of the inputs, or a function of them; got {mask!r}")


def as_rows(outputs: Tensor) -> Tensor:
    """Return outputs with a row per position, (batch, classes, *positions) -> (batch * positions, classes).

    A number for each sample, (batch,), is (batch, 1), so that sides of both shapes are not broadcast.
    """
    return outputs[:, None] if outputs.ndim == 1 else outputs.movedim(1, -1).flatten(0, -2)


def _rows_of(side: TensorOrTuple, mask: Tensor, selected: Tensor) -> TensorOrTuple:
    """Return the selected positions of a side, each as a row, (selected, channels); of numbers, (selected, 1)."""
    if isinstance(side, tuple):
        return tuple(_rows_of(tensor, mask, selected) for tensor in side)  # type: ignore[misc]  # none is a tuple
    rows = side.reshape(-1, 1) if side.shape == mask.shape else as_rows(side)
    return rows.index_select(0, selected)


def _first_of_both(mask: Tensor, target_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the masks of the first tokens of each text, as many as both masks select. Both (batch, tokens)."""
    if mask.ndim != 2 or target_mask.ndim != 2 or len(mask) != len(target_mask):
        raise RecipeError(
            "Masked(target_mask=...) pairs the tokens of texts by masks (batch, tokens) of one batch; got "
            f"{tuple(mask.shape)} and {tuple(target_mask.shape)}"
        )
    most = torch.minimum(mask.sum(1), target_mask.sum(1))[:, None]
    return mask & (mask.cumsum(1) <= most), target_mask & (target_mask.cumsum(1) <= most)


def _require_positions_of(mask: Tensor, sides: tuple[Tensor, ...]) -> None:
    for side in sides:
        if mask.shape not in (side.shape[:1] + side.shape[2:], side.shape):
            advice = (
                "pass the mask of these positions, as a key or a function of the inputs, or resize features that have "
                "other positions than those of the student, such as by Tap(..., element=...); target_mask=... is for "
                "the tokens of another tokenizer"
            )
            if side.shape[:-1] == mask.shape:
                advice = "if these are channels last, pass Tap(..., channels_last=True)"
            raise RecipeError(
                f"Masked compares features at the positions of its mask {tuple(mask.shape)}; got {tuple(side.shape)}, "
                f"(batch, channels, *positions); {advice}"
            )


def _loss_of_rows(loss: Loss, sides: tuple[Tensor, Tensor], labels: Tensor, ignored: int | None) -> Tensor:
    """Return the loss of the rows whose label is not `ignored`. sides: student and target, (rows, classes)."""
    student, target = sides
    if ignored is not None:
        # Indices, because each selection by a mask would wait for the device again.
        selected = (labels != ignored).nonzero().squeeze(1)
        if not len(selected):
            return _zero_of(student)
        student, target, labels = (side.index_select(0, selected) for side in (student, target, labels))
    kwargs = {"labels": labels} if extra_kwargs_of(loss) else {}
    return loss(student, target, **kwargs)


def _zero_of(student: Tensor) -> Tensor:
    """Return 0 with the graph of the student, so that a backward pass works; 0 * sum is NaN for masked classes."""
    return student[:0].sum()


def _require_loss_of_rows(loss: Loss, wrapper: object) -> None:
    is_weightless = callable(loss) and not isinstance(loss, type | BuildableLoss)
    if not is_weightless or extra_kwargs_of(loss) - {"labels"}:
        raise RecipeError(
            f"{type(wrapper).__name__} takes a loss on outputs without weights, ids or progress; got {loss!r}"
        )
