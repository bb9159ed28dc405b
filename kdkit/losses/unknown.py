"""Leave unknown labels out of a loss on labels."""

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.losses.validation import without_reduction


class IgnoreUnknown(nn.Module):
    """Apply a loss to the labels that are known, not NaN, as in Truth(IgnoreUnknown()).

    The unit is that of `loss`. Its reduction is over the known entries: with "mean" their mean, 0 if there are none.
    loss: one of torch with a reduction, "mean" or "sum", that compares each entry by itself; BCEWithLogitsLoss() if
    None. It is copied.
    Raises RecipeError for another loss. See `TorchData(..., unknown=)`.

    Formula: 1/K Σ loss(s_i, y_i), with i the K entries whose label is known
    Shapes: logits (N, C); labels (N, C) in [0, 1], NaN if unknown
    Source: public code: torchxrayvision, train_utils.py
    """

    accepts_unknown = True

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__()
        loss = nn.BCEWithLogitsLoss() if loss is None else loss
        self.reduction = getattr(loss, "reduction", None)
        self.loss = without_reduction(loss, self, "nn.BCEWithLogitsLoss()")

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the loss over the known entries."""
        is_known = ~target.isnan()
        # A mask instead of an index: on a GPU, the number of known entries would wait for the device.
        values: Tensor = self.loss(student, torch.where(is_known, target, 0.0))
        if values.shape != target.shape:
            raise RecipeError(
                f"IgnoreUnknown needs a loss with a value for each label {tuple(target.shape)}; "
                f"{type(self.loss).__name__} gives {tuple(values.shape)}"
            )
        total = torch.where(is_known, values, 0.0).sum()
        return total if self.reduction == "sum" else total / is_known.sum().clamp(min=1)
