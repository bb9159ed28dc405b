"""Losses on labels that may be unknown, and on samples that have weights."""

import copy

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError, describe


class IgnoreUnknown(nn.Module):
    """Apply a loss to the labels that are known, not NaN, as in Truth(IgnoreUnknown()).

    The unit is that of `loss`. Its reduction is over the known entries: with "mean" their mean, 0 if there are none.
    loss: a torch loss with reduction "mean" or "sum" that compares each entry separately; BCEWithLogitsLoss() if None.
    It is copied.
    Raises RecipeError for another loss. See `TorchData(..., unknown=)`.

    Formula: 1/K Σ loss(s_i, y_i), with i the K entries whose label is known
    Shapes: logits (N, C); labels (N, C), NaN if unknown
    Source: public code: torchxrayvision, train_utils.py
    """

    accepts_unknown = True

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__()
        loss = nn.BCEWithLogitsLoss() if loss is None else loss
        self.reduction = getattr(loss, "reduction", None)
        self.loss = _without_reduction(loss, self, "nn.BCEWithLogitsLoss()")

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the loss over the known entries."""
        is_known = ~target.isnan()
        # A mask instead of an index: on a GPU, counting the known entries would wait for the device.
        values: Tensor = self.loss(student, torch.where(is_known, target, 0.0))
        if values.shape != target.shape:
            raise RecipeError(
                f"IgnoreUnknown needs a loss with a value for each label {tuple(target.shape)}; "
                f"{type(self.loss).__name__} gives {tuple(values.shape)}"
            )
        total = torch.where(is_known, values, 0.0).sum()
        return total if self.reduction == "sum" else total / is_known.sum().clamp(min=1)


class SampleWeighted(nn.Module):
    """Weigh the samples of a loss by the weights of the data, as in Truth(SampleWeighted()).

    The unit is that of `loss`. With its reduction "mean" it is the weighted mean over samples, which equals `loss` if
    all weights are equal, even with class weights and `ignore_index`; 0 if all weights of a batch are 0. With "sum" it
    is the weighted sum. loss: a torch loss with reduction "mean" or "sum", or IgnoreUnknown of one; CrossEntropyLoss()
    if None. It is copied.
    Raises RecipeError for another loss. See `TorchData` for data with weights.

    Formula: Σ w_i loss(s_i, y_i) / Σ w_i, with w_i the weight of sample i
    Shapes: those of `loss`; a weight for each sample, (N,)
    Source: public code: scikit-learn, metrics.log_loss and its sample_weight
    """

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__()
        loss = nn.CrossEntropyLoss() if loss is None else loss
        self.reduction = getattr(loss, "reduction", None)
        copied = _without_reduction(loss, self, "nn.CrossEntropyLoss()")
        self.accepts_unknown = isinstance(loss, IgnoreUnknown)
        self.ignore_index = getattr(loss, "ignore_index", None)  # as in the loss itself; a stage reads it
        self.loss: nn.Module = copied.loss if isinstance(copied, IgnoreUnknown) else copied

    def forward(self, student: Tensor, target: Tensor, *, sample_weights: Tensor | None) -> Tensor:
        """Return the weighted loss. sample_weights: (batch,). Raises RecipeError if a batch has none."""
        if sample_weights is None:
            raise RecipeError("SampleWeighted needs the weights of the samples, and a batch has none")
        is_known = ~target.isnan() if self.accepts_unknown else None
        values: Tensor = self.loss(student, target if is_known is None else torch.where(is_known, target, 0.0))
        if values.shape[:1] != sample_weights.shape:
            raise RecipeError(
                f"SampleWeighted needs a loss with a value for each of {len(sample_weights)} samples; "
                f"{type(self.loss).__name__} gives {tuple(values.shape)}"
            )
        # Weights may be integers or booleans.
        sample_weights = sample_weights.to(torch.promote_types(sample_weights.dtype, values.dtype))
        weights = sample_weights.view(-1, *(1 for _ in values.shape[1:]))  # (batch, 1, ...)
        if is_known is not None:
            values = torch.where(is_known, values, 0.0)
        total = (weights * values).sum()
        if self.reduction == "sum":
            return total
        counts = self._counts(values, target) if is_known is None else is_known
        # A batch of weights 0 has the sum 0, and 0 / 0 would be NaN.
        return total / (weights * counts).sum().clamp(min=torch.finfo(weights.dtype).tiny)

    def _counts(self, values: Tensor, target: Tensor) -> Tensor:
        """Return how much each value counts in torch's mean, in the shape of the values."""
        if not isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss) or target.is_floating_point():
            return torch.ones_like(values)
        counts = (target != self.loss.ignore_index).to(values.dtype)
        if self.loss.weight is None:
            return counts
        # torch divides by the class weights of the samples. An ignored label, such as -100 or 255, is not a valid
        # index.
        classes = torch.where(target == self.loss.ignore_index, 0, target)
        return counts * self.loss.weight[classes]


def _without_reduction(loss: object, wrapper: object, example: str) -> nn.Module:
    """Return a copy of a torch loss without reduction; `wrapper` reduces the values of the entries itself.

    Raises RecipeError, with an example, unless its reduction is "mean" or "sum".
    """
    if not isinstance(loss, nn.Module) or getattr(loss, "reduction", None) not in ("mean", "sum"):
        raise RecipeError(
            f"{type(wrapper).__name__} takes a loss with reduction 'mean' or 'sum', such as {example}; got "
            f"{describe(loss)}"
        )
    copied = copy.deepcopy(loss)
    setattr(copied, "reduction", "none")  # noqa: B010  # nn.Module declares tensors and modules only
    return copied
