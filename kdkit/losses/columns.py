"""Select the columns of outputs that belong to the classes that two networks share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SelectColumns(nn.Module):
    """Select columns of outputs: (batch, classes) -> (batch, selected), or (batch, classes, *positions).

    Consecutive columns, such as those of a vocabulary without its padding, are returned as a view, without a copy.
    """

    columns: Tensor

    def __init__(self, columns: Sequence[int]) -> None:
        super().__init__()
        first, count = columns[0], len(columns)
        self.span = (first, count) if list(columns) == [*range(first, first + count)] else None
        # A buffer, so that it moves with the module to its device; it is not part of a checkpoint.
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def forward(self, outputs: Tensor) -> Tensor:
        """Return the selected columns."""
        return outputs.index_select(1, self.columns) if self.span is None else outputs.narrow(1, *self.span)
