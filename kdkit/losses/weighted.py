"""Weigh the samples of a loss on labels."""

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.losses.unknown import IgnoreUnknown
from kdkit.losses.validation import without_reduction


class SampleWeighted(nn.Module):
    """Weigh the samples of a loss by the weights of the data, as in Truth(SampleWeighted()).

    The unit is that of `loss`. With its reduction "mean" it is the weighted mean over samples, which is `loss` itself
    if all weights are equal, also with class weights and `ignore_index`; 0 if all weights of a batch are 0. With "sum"
    it is the weighted sum. loss: one of torch with reduction "mean" or "sum", or IgnoreUnknown of one;
    CrossEntropyLoss() if None. It is copied.
    Raises RecipeError for another loss. See `TorchData` for data with weights.

    Formula: Σ w_i loss(s_i, y_i) / Σ w_i, with w_i the weight of sample i
    Shapes: those of `loss`; a weight for each sample, (N,)
    Source: public code: scikit-learn, metrics.log_loss and its sample_weight
    """

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__()
        loss = nn.CrossEntropyLoss() if loss is None else loss
        self.reduction = getattr(loss, "reduction", None)
        copied = without_reduction(loss, self, "nn.CrossEntropyLoss()")
        self.accepts_unknown = isinstance(loss, IgnoreUnknown)
        self.ignore_index = getattr(loss, "ignore_index", None)  # as the loss itself, which a stage reads
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
        """Return how much each value counts in the mean of torch, of the shape of the values."""
        if not isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss) or target.is_floating_point():
            return torch.ones_like(values)
        counts = (target != self.loss.ignore_index).to(values.dtype)
        if self.loss.weight is None:
            return counts
        # torch divides by the weights of the classes of the samples. An ignored label is no index, such as -100 or 255.
        classes = torch.where(target == self.loss.ignore_index, 0, target)
        return counts * self.loss.weight[classes]
