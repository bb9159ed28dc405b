"""Train on several ranks: divide each batch among them, and average their gradients."""

import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdkit.data.dataset import Data, LoaderSplit
from kdkit.errors import DataError, RecipeError
from kdkit.utils import collectives

# The text of a warning of DistributedDataParallel since torch 2.14; the replacement does not exist in torch 2.10.
_OLD_NAME = "`broadcast_buffers` is deprecated"


def require_divisible(data: Data, batch_sizes: Iterable[int]) -> None:
    """Raise DataError or RecipeError if the batches of a run cannot be divided among its ranks."""
    if not collectives.is_distributed():
        return
    ranks = collectives.world_size()
    if any(isinstance(split, LoaderSplit) for split in (data.train, data.validation, data.test)):
        raise DataError(
            f"{ranks} processes divide the rows of a split, but a user-defined DataLoader has its own order; pass its "
            "Dataset and collate_fn to TorchData instead, or for a stream a Dataset with rows"
        )
    smallest = min(batch_sizes)
    if smallest < 2 * ranks:
        raise RecipeError(
            f"a batch of {smallest} samples cannot be divided among {ranks} processes, because each needs at least two "
            "samples for batch norm; use fewer processes or a larger batch_size"
        )


def data_parallel(module: nn.Module) -> DistributedDataParallel:
    """Return a module whose backward pass averages the gradients over the ranks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _OLD_NAME)
        # Some parameters may be unused: a term with weight 0, or without labels in this batch, reaches none.
        return DistributedDataParallel(_WithUnused(module), broadcast_buffers=False, find_unused_parameters=True)


class _WithUnused(nn.Module):
    """A module with an unused parameter: if all are used, DistributedDataParallel prints a warning from C++."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        trained = next(parameter for parameter in module.parameters() if parameter.requires_grad)
        self.unused = nn.Parameter(trained.new_zeros(()))

    def forward(self, *inputs: Any) -> Any:
        """Call the module."""
        return self.module(*inputs)


def rank_share(samples: int, global_size: int) -> tuple[float, float]:
    """Return the weight of this rank's part of a batch, and the number of samples that its losses represent.

    The weight is the factor of this rank's mean loss in the mean over ranks: 1 if each rank has the whole batch, or if
    all parts have the same size. global_size: that of the batch over all ranks.
    """
    ranks = collectives.world_size()
    if ranks == 1:
        return 1.0, samples
    weight = 1.0 if samples == global_size else samples * ranks / global_size
    return weight, global_size * weight / ranks
